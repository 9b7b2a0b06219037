"""What the options ask to wait in RAM, as numbers that run and plan share. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from simpletuner.memory import budget
from simpletuner.memory.options import Offload


@dataclass(frozen=True)
class Moves:
    """Which blocks wait, and how they visit the device."""

    chosen: frozenset[int]
    depth: int = budget.DEPTH  # of the ring of device slots
    ahead: bool = True  # copied beside the computation, not in front of it
    folder: Path | None = None  # where they wait, if not in RAM

    def __bool__(self) -> bool:
        return bool(self.chosen)


def moves(offload: Offload, num_blocks: int) -> Moves:
    """For a transformer of that many blocks; a model with fewer than asked for moves all it has.

    Single layers are not copied alone: leaf_level holds one block at a time, which is about what a layer would save.
    """
    if not offload.enable_group_offload:
        return Moves(budget.moved(num_blocks, min(offload.blocks_to_swap, num_blocks)))
    ahead, folder = offload.group_offload_use_stream, offload.group_offload_to_disk_path
    if offload.group_offload_type == "leaf_level":
        depth = 1
    else:  # a group computes; with a stream, the first block of the next one is on its way
        depth = min(offload.group_offload_blocks_per_group + ahead, num_blocks)
    return Moves(frozenset(range(num_blocks)), depth, ahead, folder)
