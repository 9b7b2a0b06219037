"""How a frozen matrix is kept: plain, or packed in fewer bits. Each kind is a tuple of tensors, then of whole numbers.

Being tuples, they are pytrees: code that moves, streams or compiles weights goes through their leaves and knows no
kind. Rows of a matrix are outputs; `rows(start, stop)` is a view of the same memory, and `join` is its inverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import gcd
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

GROUP = 128  # weights that share a scale in `Groups`
BLOCK, NESTED = 64, 256  # weights that share a scale in `Nf4`, and scales that share one

# The 16 levels of the normal float (Dettmers et al., QLoRA, arXiv 2305.14314, appendix E).
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def _dynamic() -> tuple[float, ...]:
    """The 256 values of the signed dynamic 8-bit type (Dettmers et al., arXiv 2110.02861), ascending.

    Decade e of seven holds 2**e values, the midpoints of as many equal parts of [0.1, 1] times ten to the e - 6.
    """
    decades = [10.0 ** (e - 6) * (0.1 + 0.9 * (j + 0.5) / 2**e) for e in range(7) for j in range(2**e)]
    return (*(-value for value in reversed(decades)), 0.0, *decades, 1.0)


DYNAMIC = _dynamic()


class Weight(Protocol):
    """A matrix (out, in), however it is kept."""

    @property
    def shape(self) -> tuple[int, int]: ...
    def dequantize(self, dtype: torch.dtype) -> Tensor: ...  # (out, in); the plain twin of every kernel
    def rows(self, start: int, stop: int) -> Any: ...  # the same kind, for outputs start..stop


class Plain(NamedTuple):
    weight: Tensor  # (out, in)

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return self.weight.to(dtype)

    def rows(self, start: int, stop: int) -> Plain:
        return Plain(self.weight[start:stop])


class Rows(NamedTuple):
    """8 bits a weight, one scale a row: w = codes x scale."""

    codes: Tensor  # (out, in), int8 or float8_e4m3fn
    scale: Tensor  # (out,), fp32

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return (self.codes.float() * self.scale[:, None].float()).to(dtype)

    def rows(self, start: int, stop: int) -> Rows:
        return Rows(self.codes[start:stop], self.scale[start:stop])


class Compute8(NamedTuple):
    """As `Rows`, and multiplied in 8 bits as well: activations are quantised on the way in, gradients on the way out.

    A type of its own, not a subclass: pytrees take only direct children of tuple for named tuples.
    """

    codes: Tensor  # as there
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return Rows(*self).shape

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return Rows(*self).dequantize(dtype)

    def rows(self, start: int, stop: int) -> Compute8:
        return Compute8(*Rows(*self).rows(start, stop))


class Groups(NamedTuple):
    """4 or 2 bits a weight, a scale and a shift for each GROUP weights of a row: w = code x scale + shift."""

    codes: Tensor  # (out x in x bits / 8,), uint8; the first of the weights in a byte lies in its low bits
    scale: Tensor  # (out x in / GROUP,), the dtype of the dequantised weight or fp32
    shift: Tensor  # the same
    num_rows: int
    num_columns: int  # a multiple of GROUP

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_rows, self.num_columns

    @property
    def bits(self) -> int:
        return 8 * self.codes.numel() // (self.num_rows * self.num_columns)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        bits, mask = self.bits, (1 << self.bits) - 1
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=self.codes.device)
        codes = (self.codes[:, None] >> shifts) & mask  # (bytes, weights in a byte)
        w = codes.reshape(-1, GROUP).float() * self.scale[:, None].float() + self.shift[:, None].float()
        return w.view(self.shape).to(dtype)

    def rows(self, start: int, stop: int) -> Groups:
        n, per_row = self.num_columns, self.num_columns // GROUP
        part = slice(start * per_row, stop * per_row)
        codes = self.codes[start * n * self.bits // 8 : stop * n * self.bits // 8]
        return Groups(codes, self.scale[part], self.shift[part], stop - start, n)


@cache
def table(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The numbers on the device, made once: a copy from the host could not be part of a recorded graph."""
    return torch.tensor(values, dtype=torch.float32, device=device)


class Nf4(NamedTuple):
    """Normal float: 4 bits a weight, a scale for each BLOCK weights of the flattened matrix, itself kept in 8 bits.

    w = LEVELS[code] x (DYNAMIC[absmax] x scale + offset), as bitsandbytes packs it with `compress_statistics`.
    `in` is even. Rows that begin within a block of nested scales cannot be a view: `rows` and `join` then go over to
    finer blocks (exactly the same values, a little more memory). Matrices of real models have none such where they
    are cut: 16 rows of 3,072 weights are three blocks of NESTED x BLOCK.
    """

    codes: Tensor  # (out x in / 2,), uint8; the first of the weights in a byte lies in its high bits
    absmax: Tensor  # (ceil(out x in / block),), uint8
    scale: Tensor  # (ceil(len(absmax) / nested),), fp32
    offset: Tensor  # the same; one number for a whole matrix, repeated so that rows can be cut and joined
    num_rows: int
    num_columns: int
    block: int = BLOCK
    nested: int = NESTED

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_rows, self.num_columns

    @property
    def span(self) -> int:
        """Weights under one nested scale: where a cut can be a view."""
        return self.block * self.nested

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        device, size = self.codes.device, self.num_rows * self.num_columns
        levels = table(LEVELS, device)
        codes = torch.stack((self.codes >> 4, self.codes & 15), dim=1).flatten()
        w = levels[codes.int()] * self._block_scales().repeat_interleave(self.block)[:size]
        return w.view(self.shape).to(dtype)

    def _block_scales(self) -> Tensor:
        """(len(absmax),), fp32."""
        num = self.absmax.numel()
        scale, offset = (t.repeat_interleave(self.nested)[:num] for t in (self.scale, self.offset))
        values = table(DYNAMIC, self.absmax.device)
        return values[self.absmax.int()] * scale + offset

    def rows(self, start: int, stop: int) -> Nf4:
        n = self.num_columns
        if start * n % self.span:
            return self._finer().rows(start, stop)
        block = slice(start * n // self.block, -(-stop * n // self.block))
        nested = slice(start * n // self.span, -(-stop * n // self.span))
        codes = self.codes[start * n // 2 : stop * n // 2]
        scales = self.absmax[block], self.scale[nested], self.offset[nested]
        return Nf4(codes, *scales, stop - start, n, self.block, self.nested)

    def _finer(self) -> Nf4:
        """The same weights in blocks that end with each row, each with a scale of its own."""
        num, size = self.absmax.numel(), self.num_rows * self.num_columns
        block = gcd(self.block, self.num_columns)
        scale, offset = (t.repeat_interleave(self.nested)[:num] for t in (self.scale, self.offset))
        absmax, scale, offset = (
            t.repeat_interleave(self.block // block)[: size // block] for t in (self.absmax, scale, offset)
        )
        return Nf4(self.codes, absmax, scale, offset, self.num_rows, self.num_columns, block, 1)


def join(weights: Sequence[Any]) -> Any:
    """One matrix with the rows of all, in order: for layers that read the same input. Kinds and widths are equal.

    `rows` of the result gives the parts back. They are copied unless they lie one after the other already: see `Room`.
    """
    first = weights[0]
    assert all(type(w) is type(first) and w.shape[1] == first.shape[1] for w in weights), "unlike matrices"
    if isinstance(first, Nf4) and not _fit(weights):
        weights = [w._finer() for w in weights]
        first = weights[0]
    assert len({w.bits if isinstance(w, Groups) else w[0].dtype for w in weights}) == 1, "unlike matrices"
    fields = [list(values) for values in zip(*weights, strict=True)]
    whole = type(first)(*(_joined(values) if isinstance(values[0], Tensor) else values[0] for values in fields))
    return whole._replace(num_rows=sum(w.num_rows for w in weights)) if hasattr(first, "num_rows") else whole


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """All rows: a view if the parts are neighbours in one memory."""
    first, place = parts[0], parts[0].storage_offset()
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and part.is_contiguous() and part.storage_offset() == place):
            return torch.cat(list(parts))
        place += part.numel()
    return first.as_strided((sum(len(part) for part in parts), *first.shape[1:]), first.stride())


class Room:
    """Memory for layers that are used as one matrix: their rows lie one after the other, and `join` copies nothing.

    Joining after loading would leave a hole for every part, which no other tensor of a model fits into.
    """

    def __init__(self, num_rows: int):
        self.num_rows = num_rows
        self.whole: Any = None

    def take(self, weight: Any, start: int) -> Any:
        """The same weight in the rows from `start`; itself where its kind cannot be cut there."""
        rows = weight.shape[0]
        if isinstance(weight, Nf4) and any(n * weight.num_columns % weight.span for n in (start, rows)):
            return weight
        if self.whole is None:
            self.whole = self._like(weight)
        mine = self.whole.rows(start, start + rows)
        for place, value in zip(mine, weight, strict=True):
            if isinstance(place, Tensor):
                place.copy_(value)
        return mine

    def _like(self, weight: Any) -> Any:
        rows = weight.shape[0]
        fields = [
            value.new_empty(len(value) * self.num_rows // rows, *value.shape[1:])
            if isinstance(value, Tensor)
            else value
            for value in weight
        ]
        whole = type(weight)(*fields)
        return whole._replace(num_rows=self.num_rows) if hasattr(whole, "num_rows") else whole


def _fit(weights: Sequence[Nf4]) -> bool:
    """Whether each begins where a nested scale of the joined matrix begins."""
    alike = len({(w.block, w.nested) for w in weights}) == 1
    return alike and not any(w.num_rows * w.num_columns % w.span for w in weights[:-1])


def weight_of(linear: nn.Module) -> Any:
    """The weight of a linear layer, packed or not."""
    packed = getattr(linear, "packed", None)
    return Plain(linear.weight) if packed is None else packed  # type: ignore[arg-type]
