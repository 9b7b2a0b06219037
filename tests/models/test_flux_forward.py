"""The functional forward against diffusers' own module: outputs, and gradients of everything that is trained."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from math import prod

import pytest
import torch
from functional_flux import BATCH, HEIGHT, TEXT, WIDTH, adapted, difference, inputs, outcome
from packed import KINDS, packed
from torch.utils.flop_counter import FlopCounterMode

from simpletuner.kernels.attention import sdpa
from simpletuner.kernels.compile import Compiled
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


def _product_flops(x, tensors, kind, bias, a, b, **_):
    tokens = prod(x[:-1])
    return 2 * tokens * prod(tensors[0]) + 2 * tokens * (prod(a) + prod(b))


def _dx_flops(dy, tensors, kind, d_inner, a, **_):
    return 2 * prod(dy[:-1]) * (prod(tensors[0]) + (0 if a is None else prod(a)))


# The operators' products lie beneath what the counter sees.
FLOPS = {torch.ops.simpletuner.adapted_product: _product_flops, torch.ops.simpletuner.packed_product_dx: _dx_flops}


@pytest.mark.parametrize("target", ["all+ffs", "mmdit", "ai-toolkit"])
def test_recomputed_blocks_have_the_gradients_of_kept_ones_and_leave_their_last_products_out(target):
    denoiser, adapter = adapted(target)
    forward, given = FluxForward(denoiser, adapter.low_rank(), sdpa), inputs()
    expected, kept = outcome(forward, adapter, given)
    forward.runner = Runner(1)
    with FlopCounterMode(display=False, custom_mapping=FLOPS) as counted:
        out, again = outcome(forward, adapter, given)
    assert torch.equal(out, expected)
    assert all(difference(again[name], kept[name]) < 1e-6 for name in kept)
    forward.runner = Runner(1, functions={block.kind: functools.partial(block.function) for block in forward.blocks})
    with FlopCounterMode(display=False, custom_mapping=FLOPS) as all_of_it:
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
