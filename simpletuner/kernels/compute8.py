"""Products in 8 bits, forward and for the gradient of the input: y = x Wᵀ + b, dx = dy W.

Activations and gradients are quantised row by row on the way in, each with the scale of its largest value; W (out, in)
is kept so already. In backward the sum runs over the rows of W, so their scales cannot be taken out of it: they are
folded into dy *before* it is quantised. One copy of the codes serves both ways.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simpletuner.kernels.device import TRITON
from simpletuner.kernels.weights import Compute8

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # what the largest value of a row becomes
CAPABILITY = {torch.int8: (8, 0), torch.float8_e4m3fn: (8, 9)}  # of the card, from which it multiplies them
FEWEST_ROWS = 17  # torch._int_mm takes no fewer
MULTIPLE = 16  # of both sizes of W, for the loads of the products


def able(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this device multiplies codes of `dtype` as they are; the processor emulates the arithmetic."""
    if device.type == "cpu":
        return True
    return device.type == "cuda" and TRITON and torch.cuda.get_device_capability(device) >= CAPABILITY[dtype]


def suits(x: Tensor, weight: Any) -> bool:
    """Whether rows x (M, ...) and this weight are multiplied in 8 bits; all else is unpacked and multiplied."""
    if not isinstance(weight, Compute8) or x.shape[0] < FEWEST_ROWS or any(n % MULTIPLE for n in weight.shape):
        return False
    return able(x.device, weight.codes.dtype)


def product(x: Tensor, weight: Compute8, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias: x (M, in), bias (out,), result (M, out) in the dtype of x."""
    codes, scale = quantize_rows(x, weight.codes.dtype)
    return multiply(codes, weight.codes, scale, weight.scale, bias, x.dtype)


def product_dx(dy: Tensor, weight: Compute8) -> Tensor:
    """dy W: dy (M, out), result (M, in) in the dtype of dy."""
    codes, scale = quantize_rows(dy, weight.codes.dtype, fold=weight.scale)
    return multiply(codes, transposed(weight.codes), scale, None, None, dy.dtype)


def quantize_rows(x: Tensor, dtype: torch.dtype, fold: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x (M, K), first times `fold` (K,) if given: codes (M, K) in `dtype` and scales (M,) in fp32."""
    if x.is_cuda and able(x.device, dtype):
        from simpletuner.kernels import compute8_triton

        return compute8_triton.quantize_rows(x, dtype, fold)
    x = x.float() if fold is None else x.float() * fold
    largest = x.abs().amax(dim=1)
    scaled = x * (LARGEST[dtype] / largest.clamp(min=1e-30))[:, None]
    return (scaled.round() if dtype is torch.int8 else scaled).to(dtype), largest / LARGEST[dtype]


def transposed(codes: Tensor) -> Tensor:
    """A new matrix (K, N) of codes (N, K): 8-bit products want both factors to run along the sum."""
    if codes.is_cuda:
        from simpletuner.kernels import compute8_triton

        return compute8_triton.transposed(codes)
    return codes.t().contiguous()


def multiply(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """(a scale_a) (b scale_b)ᵀ + bias: codes a (M, K) and b (N, K), their scales (M,) and (N,), result (M, N)."""
    if a.is_cuda:
        on_card = _integers if a.dtype is torch.int8 else _floats
        return on_card(a, b, scale_a, scale_b, bias, dtype)
    sums = (a.double() @ b.double().t()).float() * scale_a[:, None]  # exact, as int32 is; fp8 sums in fp32 on the card
    sums = sums if scale_b is None else sums * scale_b
    return (sums if bias is None else sums + bias.float()).to(dtype)


def _integers(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    from simpletuner.kernels import compute8_triton

    return compute8_triton.rescale(torch._int_mm(a, b.t()), scale_a, scale_b, bias, dtype)


def _floats(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    scale_b = scale_a.new_ones(b.shape[0]) if scale_b is None else scale_b
    bias = None if bias is None else bias.to(torch.bfloat16)  # row-wise scales come with bfloat16 results alone
    y = torch._scaled_mm(
        a, b.t(), scale_a[:, None], scale_b[None, :], bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return y.to(dtype)
