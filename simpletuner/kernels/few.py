"""Products of very few rows with a packed matrix: the codes are read once, and nothing is unpacked into memory.

With one row, as for the modulation of a picture, a product is as slow as its reading; an unpacked matrix would be
written and read besides. The plain twin is the product with `dequantize`, here with weights that stay in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from simpletuner.kernels.unpack import float8_value, nested_scale
from simpletuner.kernels.weights import DYNAMIC, LEVELS, Compute8, Nf4, Rows, table

MOST_ROWS = 4  # each reads the codes again, from the second-level cache at best
TILE_ROWS, TILE_COLUMNS = 4, 1024  # of W, in one program at a time


def suits(x: Tensor, weight: Any) -> bool:
    """Whether rows x (M, in) are few enough, and the kind is one of those that are read here."""
    if x.shape[0] > MOST_ROWS:
        return False
    return isinstance(weight, Rows | Compute8) or (isinstance(weight, Nf4) and weight.num_columns % weight.block == 0)


def product(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """x Wᵀ + bias: x (M, in), bias (out,), result (M, out) in the dtype of x, summed in fp32."""
    num_rows, num_columns = weight.shape
    x = x.contiguous()
    y = torch.empty(x.shape[0], num_rows, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(num_rows, TILE_ROWS), x.shape[0])
    common = x, x if bias is None else bias, y, num_rows, num_columns
    if isinstance(weight, Nf4):
        levels, values = table(LEVELS, x.device), table(DYNAMIC, x.device)
        scales = weight.absmax, weight.scale, weight.offset, values
        sizes = weight.block, weight.nested, bias is not None, TILE_ROWS, TILE_COLUMNS
        _nf4[grid](weight.codes, *scales, levels, *common, *sizes)
    else:
        float8, codes = weight.codes.dtype is torch.float8_e4m3fn, weight.codes.contiguous()
        codes = codes.view(torch.uint8) if float8 else codes
        _rows[grid](codes, weight.scale, *common, float8, bias is not None, TILE_ROWS, TILE_COLUMNS)
    return y


@triton.jit
def _store(sums, bias, y, row, num_rows, BIASED: tl.constexpr):
    if BIASED:
        sums += tl.load(bias + row, mask=row < num_rows).to(tl.float32)
    tl.store(y + tl.program_id(1) * num_rows + row, sums.to(y.dtype.element_ty), mask=row < num_rows)


@triton.jit
def _rows(
    codes, scale, x, bias, y, num_rows, num_columns,
    FLOAT8: tl.constexpr, BIASED: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * R + tl.arange(0, R)
    sums = tl.zeros((R, C), tl.float32)
    for start in range(0, num_columns, C):
        column = start + tl.arange(0, C)
        inside = (row < num_rows)[:, None] & (column < num_columns)[None, :]
        w = tl.load(codes + row.to(tl.int64)[:, None] * num_columns + column[None, :], mask=inside, other=0)
        if FLOAT8:
            w = float8_value(w)
        v = tl.load(x + tl.program_id(1) * num_columns + column, mask=column < num_columns, other=0.0)
        sums += w.to(tl.float32) * v.to(tl.float32)[None, :]
    s = tl.load(scale + row, mask=row < num_rows, other=0.0).to(tl.float32)
    _store(tl.sum(sums, axis=1) * s, bias, y, row, num_rows, BIASED)


@triton.jit
def _nf4(
    codes, absmax, scale, offset, values, levels, x, bias, y, num_rows, num_columns,
    BLOCK: tl.constexpr, NESTED: tl.constexpr, BIASED: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * R + tl.arange(0, R)
    real = (row < num_rows)[:, None]
    sums = tl.zeros((R, C // BLOCK), tl.float32)
    for start in range(0, num_columns, C):
        byte = start // 2 + tl.arange(0, C // 2)
        where = row.to(tl.int64)[:, None] * (num_columns // 2) + byte[None, :]
        b = tl.load(codes + where, mask=real & (byte < num_columns // 2)[None, :], other=0)
        w = tl.load(levels + tl.interleave(b >> 4, b & 15).to(tl.int32))  # (R, C)
        column = start + tl.arange(0, C)
        v = tl.load(x + tl.program_id(1) * num_columns + column, mask=column < num_columns, other=0.0)
        parts = tl.sum(tl.reshape(w * v.to(tl.float32)[None, :], (R, C // BLOCK, BLOCK)), axis=2)
        block = start // BLOCK + tl.arange(0, C // BLOCK)
        inside = real & (block < num_columns // BLOCK)[None, :]
        block = row.to(tl.int64)[:, None] * (num_columns // BLOCK) + block[None, :]
        sums += parts * nested_scale(absmax, scale, offset, values, block, inside, NESTED)
    _store(tl.sum(sums, axis=1), bias, y, row, num_rows, BIASED)
