"""Ways from host memory into a slot: straight out of pinned memory, or through a pinned buffer that a thread fills."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from simpletuner.memory.arena import Arena

STAGES = 2  # buffers: one is read into while the other is copied on


class Copier(Protocol):
    """Fills device memory in the order of one stream; `after` are events that the stream waits for first."""

    capturable: bool

    def copy(self, source: Tensor, target: Tensor, after: Sequence[Any], ready: Any) -> Future[None] | None: ...


class Straight:
    """The stream copies by itself and the host waits for nothing. Without one of its own: the current stream."""

    capturable = True

    def __init__(self, stream: Any):
        self.stream = stream

    def copy(self, source: Tensor, target: Tensor, after: Sequence[Any], ready: Any) -> None:
        if self.stream is None:
            target.copy_(source, non_blocking=True)  # from pinned memory; on the CPU it is done on return
            return
        for event in after:
            self.stream.wait_event(event)
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
        ready.record(self.stream)


class Staged:
    """Source memory need not be pinned and may be a mapped file: a thread reads ahead, and only for it one may wait.

    `num_bytes` is the largest block. Waiting for a thread cannot be recorded, so no CUDA graph may contain it.
    """

    capturable = False

    def __init__(self, stream: Any, num_bytes: int):
        self.straight = Straight(stream)
        self.buffers = [Arena(num_bytes, pin=stream is not None) for _ in range(STAGES)]
        self.emptied: list[Any] = [None] * STAGES  # events: what was in the buffer has left it
        self.turn = 0
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="weights-reader")

    def copy(self, source: Tensor, target: Tensor, after: Sequence[Any], ready: Any) -> Future[None]:
        return self.reader.submit(self._read, source, target, tuple(after), ready)

    def _read(self, source: Tensor, target: Tensor, after: Sequence[Any], ready: Any) -> None:
        turn, self.turn = self.turn, (self.turn + 1) % STAGES
        if event := self.emptied[turn]:
            event.synchronize()  # on this thread alone
        buffer = self.buffers[turn].bytes[: source.numel()]
        buffer.copy_(source)
        self.straight.copy(buffer, target, after, ready)
        if self.straight.stream:
            self.emptied[turn] = self.straight.stream.record_event()
