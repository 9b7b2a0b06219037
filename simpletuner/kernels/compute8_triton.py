"""What products in 8 bits need beside the product itself, as Triton kernels: codes of rows, a transpose, a rescaling.

The plain twins are in `compute8`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from simpletuner.kernels.compute8 import LARGEST


def quantize_rows(x: Tensor, dtype: torch.dtype, fold: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `compute8.quantize_rows`. Reads x once: a row is one program, and stays in its registers."""
    x = x if x.stride(1) == 1 else x.contiguous()
    num_rows, num_columns = x.shape
    codes = torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    width = triton.next_power_of_2(num_columns)
    _quantize[(num_rows,)](
        x, codes, scale, scale if fold is None else fold, x.stride(0), num_columns,
        LARGEST[dtype], fold is not None, dtype is torch.int8, width, num_warps=min(max(width // 1024, 1), 16),
    )  # fmt: skip
    return codes, scale


@triton.jit
def _quantize(
    x, codes, scale, fold, stride, num_columns,
    LARGEST: tl.constexpr, FOLD: tl.constexpr, WHOLE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < num_columns
    v = tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    if FOLD:
        v = v * tl.load(fold + column, mask=inside, other=0.0)
    # The largest magnitude by its bits: as whole numbers, those of NaN lie above all others, so it is not lost.
    bits = tl.max(v.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0)
    largest = bits.to(tl.float32, bitcast=True)
    v = v * (LARGEST / tl.where(largest < 1e-30, 1e-30, largest))
    if WHOLE:
        v = (v + 12582912.0) - 12582912.0  # 1.5 x 2**23: the sum has no room for fractions, so it rounds to even
    tl.store(codes + row * num_columns + column, v.to(codes.dtype.element_ty), mask=inside)
    tl.store(scale + row, largest / LARGEST)


def transposed(codes: Tensor) -> Tensor:
    """As `compute8.transposed`, for sizes that are multiples of 16."""
    num_rows, num_columns = codes.shape
    out = torch.empty(num_columns, num_rows, dtype=codes.dtype, device=codes.device)
    grid = (triton.cdiv(num_columns, 128), triton.cdiv(num_rows, 128))
    words = codes.contiguous().view(torch.int32), out.view(torch.int32)
    _transpose[grid](*words, num_rows // 4, num_columns // 4, 32, num_warps=4)
    return out


@triton.jit
def _transpose(words, out, num_rows, num_columns, SIZE: tl.constexpr):
    """Four rows of words, four codes in each, become four columns of words: whole words move, not single bytes.

    Sizes are counted in fours. Word c of rows 4r..4r+3 is a 4 x 4 square of codes; its transpose is word r of the
    rows 4c..4c+3 of the result.
    """
    r = (tl.program_id(1) * SIZE + tl.arange(0, SIZE)).to(tl.int64)
    c = (tl.program_id(0) * SIZE + tl.arange(0, SIZE)).to(tl.int64)
    inside = (r < num_rows)[:, None] & (c < num_columns)[None, :]
    source = words + r[:, None] * 4 * num_columns + c[None, :]
    w0 = tl.load(source, mask=inside, other=0)
    w1 = tl.load(source + num_columns, mask=inside, other=0)
    w2 = tl.load(source + 2 * num_columns, mask=inside, other=0)
    w3 = tl.load(source + 3 * num_columns, mask=inside, other=0)
    target = out + c[:, None] * 4 * num_rows + r[None, :]
    turned = (c < num_columns)[:, None] & (r < num_rows)[None, :]
    for j in tl.static_range(4):
        w = (w0 >> 8 * j & 255) | (w1 >> 8 * j & 255) << 8 | (w2 >> 8 * j & 255) << 16 | (w3 >> 8 * j & 255) << 24
        tl.store(target + j * num_rows, tl.trans(w), mask=turned)


def rescale(sums: Tensor, scale_a: Tensor, scale_b: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """sums (M, N) in int32 x scale_a (M,) x scale_b (N,) + bias (N,), in `dtype`."""
    num_rows, num_columns = sums.shape
    out = torch.empty(sums.shape, dtype=dtype, device=sums.device)
    grid = (triton.cdiv(num_columns, 1024), triton.cdiv(num_rows, 4))
    columns = scale_a if scale_b is None else scale_b, scale_a if bias is None else bias  # not read where absent
    _rescale[grid](
        sums, scale_a, *columns, out, num_rows, num_columns, scale_b is not None, bias is not None, 4, 1024, num_warps=8
    )
    return out


@triton.jit
def _rescale(
    sums, scale_a, scale_b, bias, out, num_rows, num_columns,
    SCALED: tl.constexpr, BIASED: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * R + tl.arange(0, R)
    column = tl.program_id(0) * C + tl.arange(0, C)
    inside = (row < num_rows)[:, None] & (column < num_columns)[None, :]
    where = row.to(tl.int64)[:, None] * num_columns + column[None, :]
    y = tl.load(sums + where, mask=inside).to(tl.float32)
    y = y * tl.load(scale_a + row, mask=row < num_rows)[:, None]
    if SCALED:
        y = y * tl.load(scale_b + column, mask=column < num_columns)[None, :]
    if BIASED:
        y = y + tl.load(bias + column, mask=column < num_columns).to(tl.float32)[None, :]
    tl.store(out + where, y.to(out.dtype.element_ty), mask=inside)
