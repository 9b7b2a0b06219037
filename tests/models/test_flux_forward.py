"""The functional forward against diffusers' own module: outputs, and gradients of everything that is trained."""

from __future__ import annotations

import functools
from contextlib import ExitStack

import pytest
import torch
from functional_flux import BATCH, HEIGHT, TEXT, WIDTH, adapted, difference, inputs, outcome
from packed import KINDS, packed
from torch.utils.flop_counter import FlopCounterMode

from simpletuner.kernels.attention import sdpa
from simpletuner.kernels.compile import Compiled, prepare
from simpletuner.kernels.product import frozen_product, unvalued_product
from simpletuner.memory.runner import Runner
from simpletuner.models.flux.forward import FluxForward


@pytest.mark.parametrize("target", ["all+ffs", "mmdit", "context+ffs", "ai-toolkit", "all+ffs+embedder"])
def test_outputs_and_all_gradients_equal_diffusers_in_fp32(target):
    denoiser, adapter = adapted(target)
    given = inputs()
    expected, theirs = outcome(denoiser, adapter, given)
    out, ours = outcome(FluxForward(denoiser, adapter.low_rank(), sdpa), adapter, given)
    assert difference(out, expected) < 1e-5
    assert theirs.keys() == ours.keys() and len(ours) > 8
    for name, grad in ours.items():
        assert difference(grad, theirs[name]) < 1e-5, name


def test_joined_weights_are_the_modules_own_memory():
    denoiser, adapter = adapted("all+ffs")
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    forward = FluxForward(denoiser, adapter.low_rank(), sdpa)
    after = denoiser.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    qkv = forward.blocks[0].weights.image.qkv.weight.weight
    base = denoiser.transformer_blocks[0].attn.to_k.base_layer.weight
    assert base.data_ptr() == qkv[base.shape[0] :].data_ptr()


def test_rehoming_a_block_changes_what_its_modules_hold():
    denoiser, adapter = adapted("all+ffs")
    forward = FluxForward(denoiser, adapter.low_rank(), sdpa)
    for block in (*forward.blocks, *forward.modulations):
        doubled = torch.utils._pytree.tree_map(lambda leaf: leaf * 2, block.weights)
        base = {name: value.clone() for name, value in denoiser.state_dict().items()}
        block.rehome(doubled)
        changed = {name for name, value in denoiser.state_dict().items() if not torch.equal(value, base[name])}
        assert changed and all(torch.equal(denoiser.state_dict()[name], base[name] * 2) for name in changed)
    names = {name for name in denoiser.state_dict() if "lora" not in name and "blocks" in name}
    assert (
        len(names)
        == sum(len(torch.utils._pytree.tree_leaves(b.weights)) for b in forward.blocks)
        + 2 * (2 * 2 * 2 + 2 * 3)
        + 2 * 2 * 2
        + 2 * 2
    )


def test_a_switched_off_and_a_scaled_adapter_are_seen():
    denoiser, adapter = adapted("all+ffs")
    given = inputs()
    forward = FluxForward(denoiser, adapter.low_rank(), sdpa)
    with torch.no_grad():
        for within in (adapter.disabled, lambda: adapter.scaled(-0.5)):
            with within():
                assert difference(forward(**given)[0], denoiser(**given, return_dict=False)[0]) < 1e-5
        assert difference(forward(**given)[0], denoiser(**given, return_dict=False)[0]) < 1e-5


def test_in_bf16_it_is_as_close_to_fp32_as_diffusers_is():
    exact, theirs, ours = [], [], []
    for dtype, found, functional in (
        (torch.float32, exact, False),
        (torch.bfloat16, theirs, False),
        (torch.bfloat16, ours, True),
    ):
        denoiser, adapter = adapted("all+ffs", dtype)
        forward = FluxForward(denoiser, adapter.low_rank(), sdpa) if functional else denoiser
        out, grads = outcome(forward, adapter, inputs(dtype))
        found += [out, torch.cat([grad.flatten().float() for grad in grads.values()])]
    for index in range(2):
        assert difference(ours[index], exact[index]) < 1.3 * difference(theirs[index], exact[index])


@pytest.mark.parametrize("target", ["all+ffs", "mmdit", "ai-toolkit"])
def test_recomputed_blocks_have_the_gradients_of_kept_ones_and_leave_their_last_products_out(target):
    denoiser, adapter = adapted(target)
    forward, given = FluxForward(denoiser, adapter.low_rank(), sdpa), inputs()
    expected, kept = outcome(forward, adapter, given)
    forward.runner = Runner(1)
    with FlopCounterMode(display=False) as counted:
        out, again = outcome(forward, adapter, given)
    assert torch.equal(out, expected)
    assert all(difference(again[name], kept[name]) < 1e-6 for name in kept)
    forward.runner = Runner(1, functions={block.kind: functools.partial(block.function) for block in forward.blocks})
    with FlopCounterMode(display=False) as all_of_it:
        outcome(forward, adapter, given)
    spared = all_of_it.get_total_flops() - counted.get_total_flops()
    tokens, width = BATCH * (HEIGHT * WIDTH // 4 + TEXT), 64
    last = 2 * tokens * (4 + 5) * width**2 * 2  # of two double and two single blocks, without factors
    gated = target == "ai-toolkit"  # gates are trained there, and their gradient asks for the values
    assert spared == 0 if gated else last <= spared < 1.4 * last


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_without_a_value_has_the_gradients_of_the_one_with(kind):
    weight = packed(kind, 128, 256)
    generator = torch.Generator().manual_seed(1)
    shapes = (3, 5, 256), (4, 256), (128, 4)
    x, a, b = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    dy = torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(2))
    expected = torch.autograd.grad(frozen_product(x, weight) + x @ a.t() @ b.t(), (x, a, b), dy)
    found = torch.autograd.grad(unvalued_product(x, weight, a, b), (x, a, b), dy)
    assert all(difference(a, b) < 1e-6 for a, b in zip(found, expected, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of the compiler itself
def test_compiled_recomputation_has_the_gradients_of_the_plain_one():
    denoiser, adapter = adapted("all+ffs")
    forward, given = FluxForward(denoiser, adapter.low_rank(), sdpa), inputs()
    expected, kept = outcome(forward, adapter, given)
    functions = {
        name: Compiled(function, name, strict=True, backend="inductor", dynamic=False, fullgraph=True)
        for name, function in forward.functions.items()
    }
    forward.runner = Runner(1, functions=functions)
    with ExitStack() as stack:
        for function in functions.values():
            stack.enter_context(function.active())
        out, again = outcome(forward, adapter, given)
    assert difference(out, expected) < 1e-5 and all(difference(again[name], kept[name]) < 1e-5 for name in kept)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of the compiler itself
def test_less_memory_for_activations_leaves_out_what_is_cheap_to_make_again_first():
    denoiser, adapter = adapted("all+ffs")
    forward = FluxForward(denoiser, adapter.low_rank(), sdpa)
    block = forward.blocks[-1]
    width, tokens = 64, 29
    generator = torch.Generator().manual_seed(1)
    x, shifts = (torch.randn(2, n, width, generator=generator) for n in (tokens, 3))
    x.requires_grad_()
    positions = torch.randn(2, tokens, 16, generator=generator).unbind()

    def kept(budget: float) -> tuple[list[torch.Tensor], torch.Tensor]:
        torch._dynamo.reset()
        prepare(8, budget)
        function = Compiled(block.function, "block", strict=True, backend="inductor", dynamic=False)
        saved = []
        with (
            function.active(),
            torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t),
        ):
            (out,) = function(block.weights, block.factors(), x, shifts, *positions, None)
            (gradient,) = torch.autograd.grad(out.square().sum(), x)
        return saved, gradient

    with torch._functorch.config.patch(activation_memory_budget=1.0):
        results = [kept(budget) for budget in (1.0, 0.9, 0.3)]
    (most, wanted), *others = results
    sizes = [sum(t.nbytes for t in saved) for saved, _ in results]
    assert sizes[0] > 1.3 * sizes[1] and sizes[1] > 1.3 * sizes[2]
    assert all(difference(gradient, wanted) < 1e-5 for _, gradient in others)
    # The wide product's result is kept; what GELU makes of it is not.
    shapes = [{tuple(t.shape) for t in saved if t.requires_grad is False} for saved, _ in results]
    assert (2 * tokens, 5 * width) in shapes[0] and (2 * tokens, 5 * width) not in shapes[1]
    assert (2, tokens, 4 * width) in shapes[1] and (2, tokens, 4 * width) not in shapes[2]
