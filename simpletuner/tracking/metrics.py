"""metrics.jsonl: the numbers of every step, one line each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from simpletuner.events import append_line, now

FILE = "metrics.jsonl"


class MetricsFile:
    """Appends lines. A step that was run twice has two; a reader takes the one of the highest attempt."""

    def __init__(self, output_dir: Path, run: str, attempt: int):
        self.path, self.run, self.attempt = output_dir / FILE, run, attempt

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """`values` are plain numbers; one that is not finite has no form in JSON and becomes null."""
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        record = {"v": 1, "run": self.run, "attempt": self.attempt, "step": step, "time": now(), "values": numbers}
        append_line(self.path, record)
