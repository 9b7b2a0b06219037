"""What is tried when memory runs out while caches are made: fewer items at once, and then another way (training.md 14).

Nothing that failed is referred to when the next rung is taken: an exception's traceback would keep its tensors alive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch

from simpletuner.errors import HardwareError
from simpletuner.events import EventLog
from simpletuner.kernels.device import free

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


class Full(Exception):
    """Not even one item fits: `item` is the first of those that do not; None if the model does not fit by itself."""

    def __init__(self, item: Any = None):
        super().__init__("memory ran out")
        self.item = item


class Batches(Generic[Item]):
    """Runs `encode` over parts of at most `size` items; the size is halved for good when memory runs out.

    phase: what it is called in events.
    """

    def __init__(self, size: int, encode: Callable[[Sequence[Item]], list[Any]], phase: str, events: EventLog):
        self.size, self.encode, self.phase, self.events = size, encode, phase, events

    def run(self, items: Sequence[Item]) -> list[Any]:
        """One result per item, in order. Full if even one item does not fit."""
        results: list[Any] = []
        while len(results) < len(items):
            part = items[len(results) : len(results) + self.size]
            try:
                results += self.encode(part)
                continue
            except torch.OutOfMemoryError:
                pass  # what it refers to is let go before anything else happens
            free()
            if len(part) == 1:
                raise Full(part[0])
            self.size = len(part) // 2
            told(self.events, self.phase, f"batch size {self.size}")
        return results


def loaded(load: Callable[[], Loaded]) -> Loaded:
    """What `load` gives. Full if there is no memory for it, also where a loader has put that into words of its own."""
    try:
        return load()
    except torch.OutOfMemoryError:
        pass
    except HardwareError as error:
        if not isinstance(error.__cause__, torch.OutOfMemoryError):
            raise
    free()
    raise Full


def told(events: EventLog, phase: str, action: str) -> None:
    """The event of one rung."""
    events.emit("memory.retry", "warning", phase=phase, action=action)
