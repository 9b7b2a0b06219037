"""Blocks that wait in host memory and visit the device: copied ahead of their use, and never back.

A forward pass uses them in order, the backward pass of recomputed blocks in reverse. Both are known ahead, so the ring
is filled with what comes next; what is asked for out of order is right all the same, only later.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from simpletuner.memory.arena import Arena, Layout, tensors
from simpletuner.memory.copies import Copier, Staged, Straight
from simpletuner.memory.ring import POISON, Ring, Slot, shared
from simpletuner.protocols import Block


class Streamed:
    """Keeps the weights of `blocks`, in the order in which they run, in host memory, and `depth` of them on the device.

    ahead: copies run on a stream of their own; else on the computing stream, in front of the block. folder: the weights
    are kept in a file there. most_pinned: bytes that may be pinned; what needs more is staged through a small pinned
    buffer. After the constructor the device holds none of those blocks, and `copies` counts how often each came.

    On the CPU the same happens at once, and a slot that is left is overwritten, so that a mistake shows in the numbers.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        device: torch.device,
        *,
        depth: int = 2,
        ahead: bool = True,
        folder: Path | None = None,
        most_pinned: int | None = None,
    ):
        assert blocks and not any(leaf.requires_grad for block in blocks for leaf in tensors(block.weights)), "trained"
        self.device, self.blocks = device, list(blocks)
        self.places = {id(block): place for place, block in enumerate(self.blocks)}
        self.copies = Counter[int]()  # by place
        self.layouts = shared([Layout.of(block.weights) for block in self.blocks])
        self.num_bytes = sum(layout.num_bytes for layout in self.layouts)
        cuda = device.type == "cuda"
        pin = cuda and folder is None and (most_pinned is None or self.num_bytes <= most_pinned)
        self.arena = Arena(self.num_bytes, pin=pin, folder=folder)
        self.sources = list(self._move())
        self.ring = Ring(self.layouts, depth, device)
        staged = folder is not None or (cuda and not self.arena.pinned)
        self.stream = torch.cuda.Stream(device) if cuda and (ahead or staged) else None
        largest = max(layout.num_bytes for layout in self.layouts)
        self.copier: Copier = Staged(self.stream, largest) if staged else Straight(self.stream)
        self.coming: deque[int] = deque()  # places, of the forward pass
        self.again: list[int] = []  # those that the backward pass fetches, the last one first

    def _move(self) -> Iterator[torch.Tensor]:
        """Each block's bytes in the arena, with its weights in them and nowhere else."""
        start = 0
        for block, layout in zip(self.blocks, self.layouts, strict=True):
            memory = self.arena.bytes[start : start + layout.num_bytes]
            start += layout.num_bytes
            weights = layout.views(memory)
            for target, source in zip(tensors(weights), tensors(block.weights), strict=True):
                target.copy_(source)
            block.rehome(weights)
            yield memory

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph may contain the transfers: not while a thread reads them from elsewhere."""
        return self.copier.capturable

    def moves(self, block: Block) -> bool:
        return id(block) in self.places

    def fetch(self, block: Block) -> Any:
        """The block's weights in their slot, in place for what the current stream does next."""
        place = self.places.get(id(block))
        if place is None:
            return block.weights
        if place not in self.coming:  # a new pass, also after one that was broken off
            self._begin()
        while self.coming.popleft() != place:
            pass
        return self._use(place)

    def fetch_again(self, block: Block) -> Any:
        """The same in the backward pass."""
        place = self.places.get(id(block))
        if place is None:
            return block.weights
        self.coming.clear()
        if place in self.again:
            while self.again.pop() != place:
                pass
        return self._use(place)

    def done(self, block: Block, again: bool) -> None:
        """The current stream has read the block for now; its slot goes to the next one that needs it."""
        place = self.places.get(id(block))
        if place is None:
            return
        slot = self.ring.holding(place)
        assert slot is not None and slot.in_use
        slot.in_use = False
        if self.stream:
            slot.freed = torch.cuda.current_stream(self.device).record_event()
        if again:
            self.again.append(place)
        self._look_ahead()
        if not self.coming and not self.again:
            self.join()

    def join(self) -> None:
        """Nothing is under way any more for what the current stream does next."""
        if self.stream:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def close(self) -> None:
        """Unpins the memory. The weights stay in it, for those who hold them."""
        for slot in self.ring.slots:
            self._arrived(slot)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # sync point
        self.arena.close()

    def _begin(self) -> None:
        """Forgets what lies in the slots: a CUDA graph may have been there meanwhile."""
        for slot in self.ring.slots:
            self._arrived(slot)
            slot.drop()
            slot.freed = None
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        self.coming, self.again = deque(range(len(self.blocks))), []

    def _use(self, place: int) -> Any:
        slot = self.ring.holding(place)
        if slot is None:
            blocked = {other for one in self.ring.in_use() for other in one.overlapping}
            slot = self.ring.room(self.layouts[place], blocked)
            assert slot is not None, "a block is fetched while another one is in use"
            self._load(slot, place)
        slot.in_use = True
        self._look_ahead()
        self._arrived(slot)
        if self.stream:
            torch.cuda.current_stream(self.device).wait_event(slot.ready)
        return slot.weights

    def _look_ahead(self) -> None:
        """Fills every slot that can be spared with the next block that lies in none."""
        wanted = set(self.ring.in_use())
        blocked = {other for slot in wanted for other in slot.overlapping}
        for place in (*self.coming, *reversed(self.again)):
            slot = self.ring.holding(place)
            if slot is None:
                slot = self.ring.room(self.layouts[place], blocked)
                if slot is None:
                    break
                self._load(slot, place)
            wanted.add(slot)
            blocked.update(slot.overlapping)
        for slot in self.ring.slots:
            if slot.block is not None and slot not in wanted:
                slot.drop()
                if self.device.type == "cpu":
                    slot.memory.fill_(POISON)

    def _load(self, slot: Slot, place: int) -> None:
        after: list[Any] = []
        for other in slot.overlapping:
            self._arrived(other)
            other.drop()
            if other.freed:
                after.append(other.freed)
                other.freed = None
        if self.stream:
            slot.ready = torch.cuda.Event()
        slot.block = place
        self.copies[place] += 1
        slot.pending = self.copier.copy(self.sources[place], slot.memory, after, slot.ready)

    @staticmethod
    def _arrived(slot: Slot) -> None:
        """Waits for the reader where there is one: the copy then is at least in its stream."""
        pending, slot.pending = slot.pending, None
        if pending:
            try:
                pending.result()
            except BaseException:
                slot.drop()
                raise
