"""Device memory that blocks take turns in: which block lies where, and which one comes next."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from simpletuner.memory.arena import ALIGNMENT, Layout

POISON = 255  # in every byte: a NaN in all floating-point types


@dataclass(eq=False)
class Slot:
    """A part of the ring's memory with the shape of one kind of block. Slots of different kinds overlap."""

    layout: Layout
    start: int
    memory: Tensor  # uint8
    weights: Any = field(init=False)  # views of `memory`; their addresses never change
    block: int | None = None  # its place among those that move
    in_use: bool = False
    overlapping: list[Slot] = field(default_factory=list)  # itself among them
    freed: Any = None  # event: the last use is over, and no copy has waited for it yet
    ready: Any = None  # event: the block has arrived
    pending: Any = None  # future: the copy that was asked for is on its way

    def __post_init__(self) -> None:
        # Copies into the ring must not look to autograd like changes of what a block computes with: .data counts alone.
        self.weights = self.layout.views(self.memory.data)

    @property
    def stop(self) -> int:
        return self.start + self.memory.numel()

    def overlaps(self, other: Slot) -> bool:
        return self.start < other.stop and other.start < self.stop

    def drop(self) -> None:
        self.block, self.in_use = None, False


class Ring:
    """`depth` times the largest block, cut into slots for each kind of block: of smaller blocks there are more."""

    def __init__(self, layouts: Sequence[Layout], depth: int, device: torch.device):
        largest = max(layout.num_bytes for layout in layouts)
        self.depth = depth
        spare = torch.empty(depth * largest + ALIGNMENT, dtype=torch.uint8, device=device)
        begin = -spare.data_ptr() % ALIGNMENT
        self.memory = spare[begin : begin + depth * largest]
        self.slots = [slot for layout in distinct(layouts) for slot in self._cut(layout)]
        for slot in self.slots:
            slot.overlapping = [other for other in self.slots if slot.overlaps(other)]
        if device.type == "cpu":
            self.memory.fill_(POISON)

    def _cut(self, layout: Layout) -> Iterable[Slot]:
        size = layout.num_bytes
        for number in range(self.memory.numel() // size):
            start = number * size
            yield Slot(layout, start, self.memory[start : start + size])

    def holding(self, block: int) -> Slot | None:
        return next((slot for slot in self.slots if slot.block == block), None)

    def room(self, layout: Layout, blocked: Collection[Slot]) -> Slot | None:
        """A slot for a block of that layout that is none of the `blocked` ones."""
        return next((slot for slot in self.slots if slot.layout is layout and slot not in blocked), None)

    def in_use(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.in_use]


def distinct(layouts: Iterable[Layout]) -> list[Layout]:
    """Each once, in order of appearance."""
    found: list[Layout] = []
    for layout in layouts:
        if layout not in found:
            found.append(layout)
    return found


def shared(layouts: Sequence[Layout]) -> list[Layout]:
    """The same list with one object for all that are equal."""
    kinds = distinct(layouts)
    return [kinds[kinds.index(layout)] for layout in layouts]
