"""Small parameters side by side in one tensor, so that one launch reaches all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby

import torch
from torch import Tensor

MOST = 8 * 2**20  # numbers of a row: the copy of its gradients, 32 MiB in fp32, comes on top of all that a step holds


class Row:
    """Parameters of one dtype and device that lie one after the other in `flat`, without gaps.

    They stay the objects that they were; their `.data` becomes a view, and what they held is free.
    """

    def __init__(self, members: Sequence[Tensor]):
        self.members = list(members)
        self.sizes = [p.numel() for p in members]
        self.starts = list(accumulate(self.sizes, initial=0))
        self.flat = torch.cat([p.detach().reshape(-1) for p in members])  # (numbers,)
        for p, part in zip(self.members, self.flat.split(self.sizes), strict=True):
            p.data = part.view_as(p)
        self._addresses = [p.data_ptr() for p in self.members]

    def holds(self, index: int) -> bool:
        """Whether a member still lies here. One that was given other data since, or was moved, does not."""
        return self.members[index].data_ptr() == self._addresses[index]

    def cut(self, whole: Tensor, each: int = 1) -> list[Tensor]:
        """What belongs to each member of a tensor that runs along the row: (members,) views of (numbers / each,)."""
        return list(whole.split([size // each for size in self.sizes]))

    def stretch(self, whole: Tensor, start: int, stop: int, each: int = 1) -> Tensor:
        """What belongs to the members from `start` to `stop`, as one view."""
        return whole[self.starts[start] // each : self.starts[stop] // each]

    def gradients(self, start: int, stop: int) -> Tensor:
        """A copy of the gradients of these members, side by side as they are: (numbers of the stretch,)."""
        flat = torch.empty_like(self.stretch(self.flat, start, stop))
        found = [p.grad.reshape(-1) for p in self.members[start:stop] if p.grad is not None]
        torch._foreach_copy_(list(flat.split(self.sizes[start:stop])), found)
        return flat


def runs(keys: Iterable[object]) -> Iterator[tuple[int, int]]:
    """(start, stop) of neighbours whose keys are equal; None is no key."""
    start = 0
    for key, equal in groupby(keys):
        stop = start + len(list(equal))
        if key is not None:
            yield start, stop
        start = stop


def rows(parameters: Iterable[Tensor], most: int = MOST) -> list[Row]:
    """Joins neighbours of one dtype and device, up to `most` numbers in each row. One alone stays where it is.

    A parameter that is itself a view stays too: something else counts on its place.
    """
    kinds: dict[tuple[torch.dtype, torch.device], list[list[Tensor]]] = {}
    for p in parameters:
        if not p.is_contiguous() or p.untyped_storage().nbytes() != p.nbytes:
            continue
        found = kinds.setdefault((p.dtype, p.device), [[]])
        if sum(other.numel() for other in found[-1]) + p.numel() > most:
            found.append([])
        found[-1].append(p)
    return [Row(members) for found in kinds.values() for members in found if len(members) > 1]
