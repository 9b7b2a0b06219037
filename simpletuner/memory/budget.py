"""Which blocks wait in RAM, how much that saves, and what it costs in time: whole numbers, no torch.

The run and the plan both ask here, so that the plan tells what the run does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

SPARE = 0.05  # of the memory of a GPU, left free by the number of blocks that is proposed
PINNED_SHARE = 0.6  # of the machine's RAM that may be pinned: the system needs the rest to breathe
DEPTH = 2  # of the ring, in blocks of the largest size: one computes, one is on its way; of smaller ones there are more
PCIE_BYTES_PER_SECOND = 25e9  # pinned host memory to device over PCIe 4.0 x16, as measured; 5.0 has twice that


def moved(num_blocks: int, num_moved: int) -> frozenset[int]:
    """The blocks that wait in RAM: evenly spaced, so that a transfer hides behind the blocks that stay between two."""
    if not 0 <= num_moved <= num_blocks:
        raise ValueError(f"{num_moved} of {num_blocks} blocks cannot move")
    return frozenset((2 * place + 1) * num_blocks // (2 * num_moved) for place in range(num_moved))


def ring_bytes(sizes: Sequence[int], chosen: Collection[int], depth: int) -> int:
    """Of the device slots: `depth` of the largest moved block. `sizes` are bytes of the blocks, in order."""
    return depth * max((sizes[index] for index in chosen), default=0)


def saved_bytes(sizes: Sequence[int], num_moved: int, depth: int) -> int:
    """What the device need not hold when that many blocks move; below 0 where the slots outweigh it."""
    chosen = moved(len(sizes), num_moved)
    return sum(sizes[index] for index in chosen) - ring_bytes(sizes, chosen, depth)


def fewest(sizes: Sequence[int], needed: int, available: int, depth: int = DEPTH) -> int | None:
    """The smallest number of moved blocks that fits with a twentieth to spare; None if all of them are not enough.

    needed: bytes on the device with every block there. available: what a GPU has, or may use.
    """
    limit = available * (1 - SPARE)
    return next((n for n in range(len(sizes) + 1) if needed - saved_bytes(sizes, n, depth) <= limit), None)


def transferred_bytes(sizes: Sequence[int], chosen: Collection[int], depth: int = DEPTH) -> int:
    """What crosses the bus in one step, at most: every moved block twice, but for those still there at the turn."""
    order = sorted(chosen)
    return 2 * sum(sizes[index] for index in order) - sum(sizes[index] for index in order[-depth:])


def stall_seconds(num_bytes: int, compute_seconds: float, rate: float = PCIE_BYTES_PER_SECOND) -> float:
    """What a step waits for transfers: they run beside the computation, and only the longer of the two counts."""
    return max(0.0, num_bytes / rate - compute_seconds)


def pinnable(ram_bytes: int) -> int:
    """Bytes that may be pinned on a machine with that much RAM; 0 if it is not known."""
    return int(ram_bytes * PINNED_SHARE)
