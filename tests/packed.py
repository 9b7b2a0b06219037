"""Random frozen matrices of every kind, and what they look like unpacked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from simpletuner.kernels.compute8 import quantize_rows
from simpletuner.kernels.weights import BLOCK, GROUP, NESTED, Compute8, Groups, Nf4, Plain, Rows


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _bytes(size: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def _rows(dtype: torch.dtype) -> Callable[..., Rows]:
    return lambda num_rows, num_columns, seed: Rows(*quantize_rows(drawn(num_rows, num_columns, seed=seed), dtype))


def _groups(bits: int) -> Callable[..., Groups]:
    def make(num_rows: int, num_columns: int, seed: int) -> Groups:
        scale = drawn(num_rows * num_columns // GROUP, seed=seed).abs() * 4 / 2**bits
        shift = -scale * (2**bits - 1) / 2  # as many above zero as below
        return Groups(_bytes(num_rows * num_columns * bits // 8, seed), scale, shift, num_rows, num_columns)

    return make


def nf4(num_rows: int, num_columns: int, seed: int = 0) -> Nf4:
    num = -(-num_rows * num_columns // BLOCK)
    scale = drawn(-(-num // NESTED), seed=seed).abs()
    codes, absmax = _bytes(num_rows * num_columns // 2, seed), _bytes(num, seed + 1)
    return Nf4(codes, absmax, scale, torch.full_like(scale, 2.0 + seed), num_rows, num_columns)


MAKERS: dict[str, Callable[..., Any]] = {
    "int8": _rows(torch.int8),
    "float8": _rows(torch.float8_e4m3fn),
    "4 bits": _groups(4),
    "2 bits": _groups(2),
    "nf4": nf4,
}
COMPUTE = {"compute int8": torch.int8, "compute float8": torch.float8_e4m3fn}
KINDS = [*MAKERS, *COMPUTE]


def packed(kind: str, num_rows: int, num_columns: int, seed: int = 0) -> Any:
    """A weight (num_rows, num_columns) of a kind in KINDS, or "plain"; numbers of the size of one."""
    if kind == "plain":
        return Plain(drawn(num_rows, num_columns, seed=seed))
    if kind in COMPUTE:
        return Compute8(*_rows(COMPUTE[kind])(num_rows, num_columns, seed))
    return MAKERS[kind](num_rows, num_columns, seed)


def shrunk(weight: Any, factor: float) -> Any:
    """The same weight with all its numbers times `factor`: those that come in fp32 are scales and shifts."""
    return tree_map_only(Tensor, lambda tensor: tensor * factor if tensor.dtype == torch.float32 else tensor, weight)


def on_card(weight: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.cuda(), weight)


def error(found: Tensor, expected: Tensor) -> float:
    """Relative, in the norm of the whole."""
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()
