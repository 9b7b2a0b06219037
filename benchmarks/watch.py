"""What is in use while a program runs: memory of the GPU as the driver counts it, and RAM."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

SECONDS = 0.02  # between two looks


def at(event: dict[str, Any]) -> float:
    """When an event of a run was, in seconds of the clock that `Watch` reads."""
    return datetime.fromisoformat(event["time"]).timestamp()


def anonymous_bytes(processes: Iterable[Path]) -> int:
    """RAM that processes (folders of /proc) hold and the system cannot take back: no pages of mapped files."""
    found = 0
    for process in processes:
        try:
            status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
            found += int(status["RssAnon"].split()[0]) * 1024
        except (OSError, KeyError):  # it has ended
            continue
    return found


class Watch(threading.Thread):
    """Looks again and again until `over`. processes: those whose RAM counts."""

    def __init__(self, processes: Callable[[], Iterable[Path]]) -> None:
        super().__init__(daemon=True)
        self.processes = processes
        self.seen: list[tuple[float, int, int]] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            free, total = torch.cuda.mem_get_info()
            self.seen.append((time.time(), total - free, anonymous_bytes(self.processes())))
            time.sleep(SECONDS)

    def most(self, begin: float, end: float) -> tuple[int, int]:
        """(bytes of the GPU, bytes of RAM) at their peaks between two times."""
        seen = [(used, ram) for when, used, ram in self.seen if begin <= when <= end]
        return max((used for used, _ in seen), default=0), max((ram for _, ram in seen), default=0)
