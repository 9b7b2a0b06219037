"""Where the inputs of recomputed blocks wait for the backward pass: on the device, or parked in RAM."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from simpletuner.memory.arena import Arena, Layout

Tensors = tuple[Tensor, ...]


class ActivationStore(Protocol):
    """Keeps tensors and gives them back, equal to the bit; the last kept is the first to be taken."""

    def keep(self, tensors: Sequence[Tensor]) -> Any: ...  # a ticket
    def take(self, ticket: Any) -> Tensors: ...  # once for each ticket


class Kept:
    """On the device."""

    def keep(self, tensors: Sequence[Tensor]) -> Tensors:
        return tuple(tensor.detach() for tensor in tensors)

    def take(self, ticket: Tensors) -> Tensors:
        return ticket


@dataclass(eq=False)
class Ticket:
    """Tensors that are parked, and how far they are on their way."""

    layout: Layout
    buffer: Arena
    pool: list[Arena]  # where the buffer goes when nobody needs the ticket any more
    here: Tensors | None  # on the device: still, or again
    ready: Any = None  # event: what was copied back has arrived
    copied: Any = field(default=None)  # event: the host has it

    def __del__(self) -> None:
        if self.here and self.ready:  # never taken: a copy may still be on its way into memory that is free from now on
            torch.cuda.current_stream(self.here[0].device).wait_event(self.ready)
        self.pool.append(self.buffer)


class Parked:
    """In RAM, pinned where there is CUDA: copied there while the next block computes, and back one block ahead.

    The host waits for nothing. What is copied stays referred to until the computing stream has waited for the copy, so
    that its memory is not given away too early, also inside a CUDA graph. Buffers are used again in every step and
    never freed: a graph knows them by address.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.free: list[Arena] = []
        self.waiting: list[weakref.ref[Ticket]] = []  # a pass that is broken off forgets its own
        self.num_bytes = 0  # in RAM

    def keep(self, tensors: Sequence[Tensor]) -> Ticket:
        held = tuple(tensor.detach() for tensor in tensors)
        layout = Layout.of(held)
        ticket = Ticket(layout, self._buffer(layout.num_bytes), self.free, held)
        if last := self._last():
            self._leave(last)
        self.waiting.append(weakref.ref(ticket))
        self._copy(layout.views(ticket.buffer.bytes), held)
        ticket.copied = self._event()
        return ticket

    def take(self, ticket: Ticket) -> Tensors:
        self.waiting = [one for one in self.waiting if one() is not ticket]
        self._fetch(ticket)
        for event in (ticket.copied, ticket.ready):
            if event:
                torch.cuda.current_stream(self.device).wait_event(event)
        if last := self._last():
            self._fetch(last)
        here, ticket.here = ticket.here, None
        assert here is not None
        return here

    def _last(self) -> Ticket | None:
        """The last kept of those that still wait."""
        while self.waiting:
            if ticket := self.waiting[-1]():
                return ticket
            self.waiting.pop()
        return None

    def _leave(self, ticket: Ticket) -> None:
        """Lets go of the tensors on the device, once the copy is done in the order of the computing stream."""
        if self.stream and ticket.copied:
            torch.cuda.current_stream(self.device).wait_event(ticket.copied)
        ticket.here = None

    def _fetch(self, ticket: Ticket) -> None:
        """Starts the way back, unless the tensors are here."""
        if ticket.here is None:
            parked: Tensors = ticket.layout.views(ticket.buffer.bytes)
            ticket.here = tuple(torch.empty_like(tensor, device=self.device) for tensor in parked)
            self._copy(ticket.here, parked)
            ticket.ready = self._event()

    def _copy(self, targets: Tensors, sources: Tensors) -> None:
        if self.stream is None:
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source)
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source, non_blocking=True)

    def _event(self) -> Any:
        return self.stream.record_event() if self.stream else None

    def _buffer(self, num_bytes: int) -> Arena:
        """The smallest free one that is large enough; a new one if there is none."""
        fitting = [buffer for buffer in self.free if buffer.num_bytes >= num_bytes]
        if fitting:
            buffer = min(fitting, key=lambda one: one.num_bytes)
            self.free.remove(buffer)
            return buffer
        self.num_bytes += num_bytes
        return Arena(num_bytes, pin=self.stream is not None)
