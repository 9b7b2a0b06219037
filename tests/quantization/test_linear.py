"""The packed layer: products, gradients, moves and casts, and PEFT on top."""

from __future__ import annotations

import pytest
import torch
from quantization.kinds import EVERY
from torch import nn

from simpletuner.quantization.linear import PackedLinear
from simpletuner.quantization.quantize import quantise


def layer(kind="int8-compute", bias=True):
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(64, 256, generator=generator) / 16
    b = nn.Parameter(torch.randn(64, generator=generator), requires_grad=False) if bias else None
    return PackedLinear(quantise(kind, w), b)


def inputs(dtype=torch.float32):
    return torch.randn(2, 40, 256, generator=torch.Generator().manual_seed(4)).to(dtype).requires_grad_(True)


@EVERY
def test_product_and_gradient_are_those_of_the_weight_it_stands_for(kind):
    packed, x = layer(kind), inputs()
    y = packed(x)
    w = packed.packed.dequantize(torch.float32)
    allowed = {"int8-compute": 0.02, "fp8-compute": 0.05}.get(kind, 1e-5)
    assert (y - (x @ w.T + packed.bias)).norm() < allowed * y.norm()
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert (dx - dy @ w).norm() < allowed * dx.norm()


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_a_linear_layer_without_a_matrix(bias):
    packed = layer(bias=bias)
    assert isinstance(packed, nn.Linear) and packed.weight is None and "in_features=256" in repr(packed)
    assert list(packed.state_dict()) == ["bias"] * bias == [name for name, _ in packed.named_parameters()]


def test_a_cast_leaves_the_codes_and_a_move_takes_them_along():
    packed = nn.Sequential(layer("fp8-compute")).to(torch.bfloat16)[0]
    assert (packed.bias.dtype, packed.packed.codes.dtype) == (torch.bfloat16, torch.float8_e4m3fn)
    assert packed.packed.scale.dtype == torch.float32
    moved = packed.to("meta")
    assert moved.packed.codes.device.type == moved.packed.scale.device.type == moved.bias.device.type == "meta"
    assert type(moved.packed).__name__ == "Compute8"


def test_it_computes_in_the_precision_of_its_input_or_of_autocast():
    packed = layer("int8-compute")
    assert packed(inputs(torch.bfloat16)).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(inputs()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["int8-compute", "fp8-compute"])
def test_peft_wraps_it(kind):
    from peft import LoraConfig, inject_adapter_in_model

    model = nn.ModuleDict({"a": layer(kind)})
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["a"], init_lora_weights=False), model)
    wrapped, x = model["a"], inputs()
    assert wrapped.get_base_layer().packed is not None and wrapped.lora_A["default"].weight.dtype == torch.float32
    wrapped(x).square().mean().backward()
    assert all(pair["default"].weight.grad.any() for pair in (wrapped.lora_A, wrapped.lora_B)) and x.grad.any()
