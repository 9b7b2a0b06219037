import contextlib
import sys
import types

import pytest
import torch
from packed import drawn, error
from torch import Tensor

from simpletuner.errors import ConfigError, HardwareError
from simpletuner.kernels import attention

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPE = (2, 20, 3, 32)  # B, S, heads, width
MASKS = {
    "none": None,
    "boolean": torch.arange(20)[None] < 13,  # (1, S): the last keys are padding
    "boolean of each": torch.arange(20) < torch.tensor([7, 20])[:, None, None, None],  # (B, 1, 1, S)
    "bias": drawn(20, 20, seed=9),
}


def exact(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of the scaled products, written out."""
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2)


def heads(grad: bool = True) -> list[Tensor]:
    return [drawn(*SHAPE, seed=seed).requires_grad_(grad) for seed in range(3)]


def results(kernel, mask) -> list[Tensor]:
    """Output and gradients of q, k and v."""
    inputs = heads()
    out = kernel(*inputs, mask)
    return [out, *torch.autograd.grad(out, inputs, drawn(*out.shape, seed=3))]


def library(monkeypatch, name: str, **functions) -> None:
    """A stand-in for a package that runs on cards only: the rest of what is tested is ours."""
    module = types.ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


def unmasked(q, k, v, **_):
    return exact(q, k, v, None).unflatten(2, q.shape[2:])


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kernel", ["diffusers", "cudnn", "flash-attn-2", "flash-attn-3", "xformers"])
def test_output_and_gradients_are_those_of_softmax_written_out(kernel, mask, monkeypatch):
    def with_bias(q, k, v, attn_bias):
        assert attn_bias is None or (attn_bias.shape == (2, 3, 20, 20) and attn_bias.stride(2) % 8 == 0)
        return exact(q, k, v, attn_bias).unflatten(2, q.shape[2:])

    library(monkeypatch, "flash_attn", flash_attn_func=unmasked)
    library(monkeypatch, "flash_attn_interface", flash_attn_func=lambda *qkv, **more: (unmasked(*qkv), None))
    library(monkeypatch, "xformers.ops", memory_efficient_attention=with_bias)
    if kernel == "cudnn" and mask is None:
        pytest.skip("without a mask it needs a card: tests/models/test_flux_forward_gpu.py")
    expected = results(exact, mask)
    for found, wanted in zip(results(attention.KERNELS[kernel], mask), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of PyTorch's compiler itself
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_flex_is_compiled_and_takes_masks(mask):
    with torch.no_grad():  # PyTorch has no backward pass of it on a CPU
        found, expected = attention.flex(*heads(grad=False), mask), exact(*heads(grad=False), mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# ---- choosing


def test_the_default_is_pytorchs_choice():
    chosen = attention.choose("diffusers", CPU, torch.bfloat16)
    assert (chosen.name, chosen.training, chosen.sampling) == ("sdpa", attention.sdpa, attention.sdpa)


@pytest.mark.parametrize("name", ["flash-attn-2", "flash-attn-3", "xformers"])
def test_a_missing_package_is_an_error_with_the_line_that_installs_it(name, monkeypatch):
    package = attention.ATTENTION[name]
    monkeypatch.setitem(sys.modules, package.module, None)
    with pytest.raises(ConfigError, match=package.module) as stopped:
        attention.choose(name, CPU, torch.float32)
    (problem,) = stopped.value.problems
    assert problem.fix == package.install and problem.keys == ("attention_mechanism",) and problem.exit_code == 2


@pytest.mark.parametrize("name", ["cudnn", "flex"])
def test_a_kernel_that_does_not_run_here_is_an_error_of_the_machine(name):
    with pytest.raises(HardwareError, match=f"{name} does not run here: .+") as stopped:
        attention.choose(name, CPU, torch.float32)
    assert stopped.value.exit_code == 5 and "diffusers" in stopped.value.problems[0].fix


@pytest.mark.parametrize("factor", [1.0, float("nan")])
def test_a_kernel_that_computes_something_else_is_not_used(factor, monkeypatch):
    library(monkeypatch, "flash_attn", flash_attn_func=lambda q, k, v, **_: (q + k + v) * factor)
    with pytest.raises(HardwareError, match="computes something else") as stopped:
        attention.choose("flash-attn-2", CPU, torch.float32)
    assert stopped.value.exit_code == 5


def test_wrong_gradients_alone_are_found(monkeypatch):
    def detached(q, k, v, **_):
        return unmasked(q, k.detach() + 0 * k, v)

    library(monkeypatch, "flash_attn", flash_attn_func=detached)
    with pytest.raises(HardwareError, match="computes something else"):
        attention.choose("flash-attn-2", CPU, torch.float32)


@pytest.mark.parametrize("deterministic", [False, True])
def test_flash_attention_is_told_to_be_deterministic(deterministic, monkeypatch):
    told = []
    library(monkeypatch, "flash_attn", flash_attn_func=lambda *qkv, **more: (told.append(more), unmasked(*qkv))[1])
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    attention.choose("flash-attn-2", CPU, torch.float32)
    assert told == [{"deterministic": deterministic}]


@pytest.mark.parametrize(("deterministic", "capability", "best"), [(False, (9, 0), True), (True, (9, 0), False),
                                                                   (False, (8, 9), False)])  # fmt: skip
def test_cudnn_is_the_default_on_hopper_unless_a_run_must_repeat(deterministic, capability, best, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    assert attention._cudnn_is_best(CUDA, torch.bfloat16) is best
    assert not attention._cudnn_is_best(CUDA, torch.float32)


# ---- SageAttention, which is for sampling


@pytest.mark.parametrize(("name", "function"), attention.SAGE_KERNELS.items())
def test_sage_samples_with_the_kernel_of_its_name_and_training_is_untouched(name, function, monkeypatch):
    layouts = []
    library(monkeypatch, "sageattention", **{
        function: lambda q, k, v, tensor_layout: (layouts.append(tensor_layout), unmasked(q, k, v))[1]
    })  # fmt: skip
    chosen = attention.choose(name, CPU, torch.float32)
    assert chosen.training is attention.sdpa and not chosen.notice and name in chosen.name and layouts == ["NHD"]
    torch.testing.assert_close(chosen.sampling(*heads(), None), exact(*heads(), None), rtol=1e-5, atol=1e-5)
    mask = MASKS["boolean"]
    torch.testing.assert_close(chosen.sampling(*heads(), mask), exact(*heads(), mask), rtol=1e-5, atol=1e-5)
    assert len(layouts) == 2


def test_hopper_has_a_kernel_of_its_own(monkeypatch):
    calls = []
    library(monkeypatch, "sageattention", sageattn_qk_int8_pv_fp8_cuda_sm90=lambda q, *_, **__: (calls.append(1), q)[1])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    attention.sage("sageattention-int8-fp8-cuda", CUDA)(*heads(), None)
    assert calls


def test_without_the_package_samples_are_as_training_and_a_rule_has_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "sageattention", None)
    assert attention.choose("sageattention", CPU, torch.float32) == attention.choose("diffusers", CPU, torch.float32)


def fails(*_, **__):
    raise AssertionError("Input tensors must be on cuda.\nand more")


@pytest.mark.parametrize(("functions", "reason"), [
    ({}, "the sageattention that is installed has no sageattn"),
    ({"sageattn": fails}, "Input tensors must be on cuda."),
    ({"sageattn": lambda q, k, v, **_: v}, "computes something else"),
])  # fmt: skip
def test_where_sage_fails_samples_are_as_training_and_it_is_told(functions, reason, monkeypatch):
    library(monkeypatch, "sageattention", **functions)
    chosen = attention.choose("sageattention", CPU, torch.float32)
    assert chosen.sampling is chosen.training is attention.sdpa
    assert chosen.notice.startswith("samples use sdpa, not sageattention: ") and reason in chosen.notice


def test_a_switch_is_over_when_sampling_is_even_if_it_fails():
    names = []
    switch = attention.Switch(*(lambda q, *_, name=name: (names.append(name), q)[1] for name in ("train", "sample")))
    q, k, v = heads()
    switch(q, k, v, None)
    with contextlib.suppress(ZeroDivisionError), switch.sampling():
        with switch.sampling():
            switch(q, k, v, None)
        switch(q, k, v, None)
        raise ZeroDivisionError
    switch(q, k, v, None)
    assert names == ["train", "sample", "sample", "train"]


def test_what_bf16_loses_is_far_below_the_tolerance():
    found = [x.float() for x in results(lambda *qkv: attention.sdpa(*(x.bfloat16() for x in qkv[:3]), qkv[3]), None)]
    assert max(error(a, b) for a, b in zip(found, results(exact, None), strict=True)) < attention.TOLERANCE / 5
