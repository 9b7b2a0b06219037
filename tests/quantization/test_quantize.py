"""What we keep of a matrix is what its library makes of it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from quantization.kinds import EVERY, parameters

from simpletuner.errors import ConfigError
from simpletuner.kernels import weights
from simpletuner.quantization.kinds import GROUP, KINDS
from simpletuner.quantization.quantize import quantise

ROUNDED = 2**-8  # one rounding to bf16, relative


def matrix(dtype=torch.float32, rows=64, columns=256):
    generator = torch.Generator().manual_seed(7)
    return (torch.randn(rows, columns, generator=generator) * 0.02).to(dtype)


def unpacked(packed, bits):
    return torch.cat([(packed >> shift) % 2**bits for shift in range(0, 8, bits)])


def of_quanto(kind, w):
    """The library's own layer, frozen."""
    from optimum import quanto
    from optimum.quanto.library.extensions.cpp import ext

    if ext._lib is None:  # the same in C++ would be compiled, for a minute
        ext._lib = SimpleNamespace(unpack=unpacked)
    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype)
    layer.weight.data.copy_(w)
    names = {"int8": "qint8", "int4": "qint4", "int2": "qint2", "fp8": "qfloat8"}
    made = quanto.QLinear.from_module(layer, weights=getattr(quanto, names[kind.split("-")[0]]))
    made.freeze()
    weight = made.weight
    if hasattr(weight, "_shift"):  # its own way back compiles an extension
        general = weight if type(weight) is quanto.WeightQBitsTensor else weight.weight_qbits_tensor()
        codes = unpacked(general._data._data, general.qtype.bits)
        return (codes * general._scale - general._shift).reshape(w.shape)
    return weight.dequantize()


def of_torchao(kind, w):
    from torchao.quantization import Float8Tensor, Int8Tensor, PerRow, utils

    if kind == "int4-torchao":
        codes, scales = utils.groupwise_affine_quantize_tensor(w, 4, GROUP, w.dtype)
        return utils.groupwise_affine_dequantize_tensor(codes, scales, 4, GROUP)
    made = Int8Tensor if kind.startswith("int8") else Float8Tensor
    return made.from_hp(w, granularity=PerRow()).dequantize()


def of_bitsandbytes(kind, w):
    from bitsandbytes import functional

    if kind == "nf4-bnb":
        return functional.dequantize_4bit(*functional.quantize_4bit(w, compress_statistics=True, quant_type="nf4"))
    codes, largest, _ = functional.int8_vectorwise_quant(w.half())
    return functional.int8_vectorwise_dequant(codes, largest)


LIBRARIES = {"quanto": of_quanto, "torchao": of_torchao, "bitsandbytes": of_bitsandbytes}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [p for p in parameters() if KINDS[p.values[0]].library in LIBRARIES])
def test_it_is_the_weight_of_the_library(kind, dtype):
    w = matrix(dtype)
    theirs = LIBRARIES[KINDS[kind].library](kind, w).float()
    ours = quantise(kind, w).dequantize(torch.float32)
    # In bf16 the library rounds after each operation, and for groups those are sums of larger numbers.
    roundings = 6 if KINDS[kind].weight == "Groups" else 1
    allowed = 2e-6 if dtype == torch.float32 else roundings * ROUNDED
    assert (ours - theirs).abs().max() <= allowed * w.float().abs().max()


@EVERY
def test_its_error_is_that_of_its_bits(kind):
    w = matrix()
    error = (quantise(kind, w).dequantize(torch.float32) - w).norm() / w.norm()
    coarse = {8: 0.008 if "int8" in kind else 0.03, 4: 0.11, 2: 0.55}[KINDS[kind].bits]
    assert coarse / 8 < error < coarse


@EVERY
def test_it_takes_the_bytes_that_the_table_says(kind):
    w = matrix(torch.bfloat16, rows=128, columns=3072)
    packed = quantise(kind, w)
    assert type(packed) is getattr(weights, KINDS[kind].weight) and packed.shape == w.shape
    held = sum(part.nbytes for part in packed if torch.is_tensor(part)) / w.numel()
    assert held == pytest.approx(KINDS[kind].num_bytes, rel=0.003)  # the scales of rows are not counted


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_zeros_and_groups_of_one_value_stay_finite(kind, dtype):
    w = matrix(dtype)
    w[3], w[5, :GROUP] = 0, 0.25
    back = quantise(kind, w).dequantize(torch.float32)
    assert back.isfinite().all() and not back[3].any()
    assert (back[5, :GROUP] - 0.25).abs().max() < 0.02


@EVERY
def test_it_leaves_the_matrix_as_it_is(kind):
    w = matrix()
    quantise(kind, w)
    assert torch.equal(w, matrix())


def test_codes_of_fewer_bits_lie_in_the_order_of_the_weights():
    w = torch.zeros(1, GROUP)
    w[0, :3] = torch.tensor([1.0, 0.2, 0.6])
    assert [quantise("int4-quanto", w).codes[0].item(), quantise("int2-quanto", w).codes[0].item()] == [0x3F, 0b100111]


@pytest.mark.parametrize("kind", ["int4-torchao", "fp8-torchao", "nf4-bnb"])
def test_a_missing_library_is_an_error_with_the_line_that_installs_it(kind, monkeypatch):
    for name in ("optimum", "torchao", "torchao.quantization", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="is not installed") as raised:
        quantise(kind, matrix())
    assert raised.value.problems[0].fix == f"pip install 'simpletuner[{KINDS[kind].library}]'"
