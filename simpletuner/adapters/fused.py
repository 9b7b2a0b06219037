"""Layers as the original model cuts them: queries, keys and values in one, and one with its halves swapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from simpletuner.adapters.delta import Pair, padded

SWAPPED = "norm_out.linear"  # diffusers has (scale, shift) where the original has (shift, scale)
MLP_RATIO = 4  # rows of a single block's feed-forward to those of its queries


def split(pair: Pair, layer: Sequence[str], rows: Sequence[int]) -> dict[str, Pair]:
    """The pairs of the diffusers layers that share a layer of the original model. Untrained ones are left out.

    rows: output rows of each. A block-diagonal B is cut with A; otherwise every part gets the whole A.
    """
    a, b = pair
    if len(layer) == 1:
        return {layer[0]: (a, _swapped(b) if layer[0] == SWAPPED else b)}
    columns = _blocks(pair, rows)
    found = {}
    for name, part, own in zip(layer, b.split(list(rows)), columns, strict=True):
        piece = (a[own].contiguous(), part[:, own].contiguous())
        if any(bool(half.any()) for half in piece):
            found[name] = piece
    return found


def _blocks(pair: Pair, rows: Sequence[int]) -> list[slice]:
    """Which of the rank belongs to each part: an equal share if B is block-diagonal, otherwise all of it."""
    _, b = pair
    share, rest = divmod(b.shape[1], len(rows))
    own = [slice(number * share, (number + 1) * share) for number in range(len(rows))]
    outside = (
        bool(part[:, : mine.start].any()) or bool(part[:, mine.stop :].any())
        for part, mine in zip(b.split(list(rows)), own, strict=True)
    )
    return [slice(None)] * len(rows) if rest or any(outside) else own


def join(layer: Sequence[str], pairs: Mapping[str, Pair]) -> Pair:
    """One pair for a layer of the original model: the A's stacked, B block-diagonal, zero where nothing was trained.

    Its rank is the largest of the parts' times their number.
    """
    if len(layer) == 1:
        a, b = pairs[layer[0]]
        return (a, _swapped(b) if layer[0] == SWAPPED else b)
    there = [pairs[name] for name in layer if name in pairs]
    rank, like = max(a.shape[0] for a, _ in there), there[0][0]
    inputs = like.shape[1]
    downs, ups = [], []
    for number, name in enumerate(layer):
        rows = inputs * (MLP_RATIO if number == 3 else 1)  # the fourth part is the feed-forward
        none = (like.new_zeros(rank, inputs), like.new_zeros(rows, rank))
        a, b = padded(pairs[name], rank) if name in pairs else none
        downs.append(a)
        ups.append(b)
    return torch.cat(downs), torch.block_diag(*ups)


def _swapped(b: torch.Tensor) -> torch.Tensor:
    first, second = b.chunk(2)
    return torch.cat([second, first])
