"""The joined product with low-rank factors against PEFT's own layers, one by one."""

import peft
import pytest
import torch
from packed import drawn, packed
from torch import Tensor, nn

from simpletuner.kernels.lora import Linear, LowRank, adapted
from simpletuner.kernels.weights import Plain, join

IN, ROWS = 24, 7
ONE, QKV, WIDE = (16,), (16, 16, 16), (16, 16, 16, 64)  # outputs of the joined layers; the last is a single block's


def layers(sizes, bias: bool, trained, rank: int) -> nn.ModuleDict:
    """Linear layers on the same input; those that `trained` counts have PEFT's factors, none of them zero."""
    base = nn.ModuleDict({f"layer{i}": nn.Linear(IN, size, bias=bias) for i, size in enumerate(sizes)})
    for seed, value in enumerate(base.parameters()):
        value.data = drawn(*value.shape, seed=seed) / 5
        value.requires_grad_(False)
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank * 0.75, target_modules=[f"layer{i}" for i in trained], init_lora_weights=False
    )
    return peft.inject_adapter_in_model(config, base) if trained else base


def factors(layer: nn.Module) -> LowRank | None:
    if not hasattr(layer, "lora_A"):
        return None
    return LowRank(
        layer.lora_A["default"].weight, layer.lora_B["default"].weight, torch.tensor(layer.scaling["default"])
    )


def joined(modules) -> Linear:
    bases = [getattr(module, "base_layer", module) for module in modules]
    bias = None if bases[0].bias is None else torch.cat([base.bias for base in bases])
    return Linear(join([Plain(base.weight) for base in bases]), bias)


def results(y: Tensor, x: Tensor, trained: list[Tensor]) -> list[Tensor]:
    return [y, *torch.autograd.grad(y, [x, *trained], drawn(*y.shape, seed=5))]


@pytest.mark.parametrize("rank", [1, 16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("sizes", "trained"),
    [(ONE, [0]), (QKV, [0, 1, 2]), (QKV, [0, 2]), (QKV, [1]), (WIDE, [0, 1, 2, 3]), (WIDE, [3]), (WIDE, [2, 3])],
)
def test_output_and_all_gradients_equal_pefts_in_fp32(sizes, trained, bias, rank):
    modules = list(layers(sizes, bias, trained, rank).values())
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    assert len(parameters) == 2 * len(trained)
    x = drawn(2, ROWS, IN, seed=8).requires_grad_()
    expected = results(torch.cat([module(x) for module in modules], -1), x, parameters)
    y = adapted(x, joined(modules), [factors(module) for module in modules], sizes)
    for found, wanted in zip(results(y, x, parameters), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_without_factors_it_is_the_frozen_product():
    modules = list(layers(QKV, True, [], 1).values())
    x = drawn(ROWS, IN)
    y = adapted(x, joined(modules), [None] * 3, QKV)
    torch.testing.assert_close(y, torch.cat([module(x) for module in modules], -1))


def test_factors_of_unlike_ranks_may_be_joined():
    modules = [next(iter(layers(ONE, True, [0], rank).values())) for rank in (1, 5)]
    x = drawn(ROWS, IN)
    y = adapted(x, joined(modules), [factors(module) for module in modules], (16, 16))
    torch.testing.assert_close(y, torch.cat([module(x) for module in modules], -1), rtol=1e-5, atol=1e-5)


def test_another_strength_is_another_number_in_the_same_tensor():
    (module,) = layers(ONE, True, [0], 4).values()
    factor, x = factors(module), drawn(ROWS, IN)
    base = adapted(x, joined([module]), [None], ONE)
    full = adapted(x, joined([module]), [factor], ONE) - base
    factor.scale.mul_(-0.5)
    half = adapted(x, joined([module]), [factor], ONE) - base
    torch.testing.assert_close(half, -0.5 * full, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "4 bits", "nf4"])
def test_over_a_packed_matrix_it_is_as_over_the_unpacked_one(kind):
    modules = list(layers((128,) * 3, True, [0, 2], 4).values())
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    found = [factors(module) for module in modules]
    wide = [LowRank(drawn(4, 128, seed=i).requires_grad_(), f.b, f.scale) if f else None for i, f in enumerate(found)]
    parameters = [t for f in wide if f for t in (f.a, f.b)]
    weight, x = packed(kind, 384, 128), drawn(ROWS, 128, seed=8).requires_grad_()
    plain = Plain(weight.dequantize(torch.float32))
    ours, theirs = (
        results(adapted(x, Linear(one, drawn(384)), wide, (128,) * 3), x, parameters) for one in (weight, plain)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())
