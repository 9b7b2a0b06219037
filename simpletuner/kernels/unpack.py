"""Packed weights become a plain matrix, at the speed of the memory: Triton kernels whose plain twin is `dequantize`.

Each is exact to fp32 rounding and then rounded once to the dtype of the result. Nothing waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from simpletuner.kernels.weights import DYNAMIC, GROUP, LEVELS, Compute8, Groups, Nf4, Rows, table

COLUMNS = 1024  # weights of a row that one program of `_rows` reads
TILE_ROWS = 4  # and rows
TILE = 4096  # weights of one program of the others


def unpack(weight: Any, dtype: torch.dtype) -> Tensor:
    """(out, in) in `dtype`, new memory on the device of the codes."""
    out = torch.empty(weight.shape, dtype=dtype, device=weight.codes.device)
    if isinstance(weight, Rows | Compute8):
        _unpack_rows(weight, out)
    elif isinstance(weight, Groups):
        _unpack_groups(weight, out)
    else:
        _unpack_nf4(weight, out)
    return out


def _unpack_rows(weight: Rows | Compute8, out: Tensor) -> None:
    num_rows, num_columns = out.shape
    float8, codes = weight.codes.dtype is torch.float8_e4m3fn, weight.codes.contiguous()
    codes = codes.view(torch.uint8) if float8 else codes
    grid = (triton.cdiv(num_columns, COLUMNS), triton.cdiv(num_rows, TILE_ROWS))
    _rows[grid](codes, weight.scale, out, num_rows, num_columns, float8, TILE_ROWS, COLUMNS)


@triton.jit
def float8_value(byte):
    """The fp32 value of each e4m3 byte: its parts put where float16 has them, whose exponents begin 8 lower.

    Cards before 8.9 have no instruction for it. NaN would be 480: weights quantised by their largest value have none.
    """
    b = byte.to(tl.uint16)
    return (((b & 0x80) << 8) | ((b & 0x7F) << 7)).to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def nested_scale(absmax, scale, offset, values, block, inside, NESTED: tl.constexpr):
    """The fp32 scale of each block of nf4 codes, which is itself a code of 8 bits with a scale and an offset."""
    s = tl.load(values + tl.load(absmax + block, mask=inside, other=0).to(tl.int32))
    nested = block // NESTED
    return s * tl.load(scale + nested, mask=inside, other=0.0) + tl.load(offset + nested, mask=inside, other=0.0)


@triton.jit
def _rows(codes, scale, out, num_rows, num_columns, FLOAT8: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    row = tl.program_id(1) * R + tl.arange(0, R)
    column = tl.program_id(0) * C + tl.arange(0, C)
    inside = (row < num_rows)[:, None] & (column < num_columns)[None, :]
    where = row.to(tl.int64)[:, None] * num_columns + column[None, :]
    w = tl.load(codes + where, mask=inside)
    if FLOAT8:
        w = float8_value(w)
    s = tl.load(scale + row, mask=row < num_rows).to(tl.float32)
    tl.store(out + where, (w.to(tl.float32) * s[:, None]).to(out.dtype.element_ty), mask=inside)


def _unpack_groups(weight: Groups, out: Tensor) -> None:
    num_groups = weight.scale.numel()
    kernel = _groups4 if weight.bits == 4 else _groups2
    grid = (triton.cdiv(num_groups, TILE // GROUP),)
    kernel[grid](weight.codes, weight.scale, weight.shift, out, num_groups, TILE // GROUP, GROUP)


@triton.jit
def _group_tile(num_groups, G: tl.constexpr, WIDTH: tl.constexpr):
    """This program's groups, and the places of their WIDTH items each."""
    group = tl.program_id(0) * G + tl.arange(0, G)
    inside = (group < num_groups)[:, None] & (tl.arange(0, WIDTH) < WIDTH)[None, :]
    return group, group.to(tl.int64)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :], inside


@triton.jit
def _store_groups(w, scale, shift, out, num_groups, G: tl.constexpr, SIZE: tl.constexpr):
    group, where, inside = _group_tile(num_groups, G, SIZE)
    s = tl.load(scale + group, mask=group < num_groups).to(tl.float32)
    z = tl.load(shift + group, mask=group < num_groups).to(tl.float32)
    w = w.to(tl.float32) * s[:, None] + z[:, None]
    tl.store(out + where, w.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _groups4(codes, scale, shift, out, num_groups, G: tl.constexpr, SIZE: tl.constexpr):
    group, where, inside = _group_tile(num_groups, G, SIZE // 2)
    b = tl.load(codes + where, mask=inside)
    _store_groups(tl.interleave(b & 15, b >> 4), scale, shift, out, num_groups, G, SIZE)


@triton.jit
def _groups2(codes, scale, shift, out, num_groups, G: tl.constexpr, SIZE: tl.constexpr):
    group, where, inside = _group_tile(num_groups, G, SIZE // 4)
    b = tl.load(codes + where, mask=inside)
    even = tl.interleave(b & 3, (b >> 4) & 3)  # weights 0 and 2 of each byte
    odd = tl.interleave((b >> 2) & 3, b >> 6)  # 1 and 3
    _store_groups(tl.interleave(even, odd), scale, shift, out, num_groups, G, SIZE)


def _unpack_nf4(weight: Nf4, out: Tensor) -> None:
    levels, values = table(LEVELS, out.device), table(DYNAMIC, out.device)
    num_blocks, blocks = weight.absmax.numel(), TILE // weight.block
    scales = weight.absmax, weight.scale, weight.offset, values
    sizes = out.numel(), num_blocks, blocks, weight.block, weight.nested
    _nf4[(triton.cdiv(num_blocks, blocks),)](weight.codes, *scales, levels, out, *sizes)


@triton.jit
def _nf4(
    codes, absmax, scale, offset, values, levels, out, size, num_blocks,
    B: tl.constexpr, BLOCK: tl.constexpr, NESTED: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0) * B + tl.arange(0, B)
    s = nested_scale(absmax, scale, offset, values, block, block < num_blocks, NESTED)
    byte = block.to(tl.int64)[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
    b = tl.load(codes + byte, mask=byte < size // 2, other=0)
    code = tl.interleave(b >> 4, b & 15).to(tl.int32)
    where = block.to(tl.int64)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    w = tl.load(levels + code) * s[:, None]  # 64 bytes of table: one line of the first-level cache
    tl.store(out + where, w.to(out.dtype.element_ty), mask=where < size)
