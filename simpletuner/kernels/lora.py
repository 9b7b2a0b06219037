"""The product of a frozen matrix and low-rank factors on top: y = W x + b + s B (A x)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simpletuner.kernels.product import adapted_product, frozen_product, unvalued_product


class LowRank(NamedTuple):
    """What is trained on one matrix (out, in)."""

    a: Tensor  # (r, in)
    b: Tensor  # (out, r)
    scale: Tensor  # (): s, on the device, so that another strength compiles nothing anew


class Linear(NamedTuple):
    """A frozen linear layer, or several that read the same input, joined."""

    weight: Any  # kernels.weights.Weight, (out, in)
    bias: Tensor | None  # (out,)


def adapted(
    x: Tensor, linear: Linear, factors: Sequence[LowRank | None], sizes: Sequence[int], valued: bool = True
) -> Tensor:
    """x (..., in) -> (..., out). One entry of `factors` and `sizes` (outputs) for each of the joined layers.

    The layers' A are stacked and their B set on a diagonal, so that x is read once and y is written once. Without
    `valued` only the gradients of the result are right, see `unvalued_product`.
    """
    present = [(index, factor) for index, factor in enumerate(factors) if factor is not None]
    if not present:
        return frozen_product(x, linear.weight, linear.bias) if valued else unvalued_product(x, linear.weight)
    a = [factor.a.to(x.dtype) for _, factor in present]
    b = [(factor.b * factor.scale).to(x.dtype) for _, factor in present]
    outer = _diagonal([index for index, _ in present], b, sizes)
    return adapted_product(x, linear.weight, linear.bias, a[0] if len(a) == 1 else torch.cat(a), outer, valued=valued)


def _diagonal(places: Sequence[int], b: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """(sum of sizes, sum of r): each B in the rows of its layer and the columns of its A."""
    if len(sizes) == 1:
        return b[0]
    rows, column = [], 0
    width = sum(part.shape[1] for part in b)
    by_place = dict(zip(places, b, strict=True))
    for place, size in enumerate(sizes):
        part = by_place.get(place)
        if part is None:
            rows.append(b[0].new_zeros(size, width))
        else:
            rows.append(F.pad(part, (column, width - column - part.shape[1])))
            column += part.shape[1]
    return torch.cat(rows)
