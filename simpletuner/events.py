"""What a run tells the world: one record per event, appended to events.jsonl and handed to subscribers.

The progress bar, trackers and webhooks subscribe; nothing else tells them. Types and their data: outputs.md section 10.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Fsynced before anyone is told: after a power cut the file still knows what was announced.
DURABLE = frozenset({
    "run.started", "run.resumed", "run.stage", "run.stopped", "run.finished", "run.failed", "dataset.report",
    "checkpoint.saved", "checkpoint.failed", "checkpoint.deleted", "export.done", "export.failed",
    "validation.started", "validation.finished", "sample.saved", "evaluation.done", "nonfinite.found",
    "memory.retry", "disk.low", "warning", "control.accepted", "control.refused",
})  # fmt: skip
ENDINGS = frozenset({"run.stopped", "run.finished", "run.failed"})  # without one, the process was killed
MAX_LINE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Event:
    id: str  # run/attempt/seq
    run: str
    attempt: int
    seq: int  # from 1, without gaps within an attempt
    type: str
    time: str
    severity: str
    step: int
    rank: int
    job_id: str | None
    data: dict[str, Any]
    v: int = 1


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole JSON records of a .jsonl file; a torn or foreign line is skipped."""
    records = []
    if path.exists():
        for line in path.read_text("utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                records.append(record)
    return records


def append_line(path: Path, record: dict[str, Any], durable: bool = False) -> None:
    """Adds one record with a single write. A torn last line (power cut) is closed first."""
    line = (json.dumps(record, ensure_ascii=False, default=str, separators=(",", ":")) + "\n").encode()
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        if durable:
            os.fsync(file.fileno())


class EventLog:
    """The one account of a run. `emit` writes, then tells the subscribers; their failures never reach the run."""

    def __init__(self, output_dir: Path | None, rank: int = 0):
        self.path = output_dir / "events.jsonl" if output_dir and rank == 0 else None
        self.rank = rank
        self.subscribers: list[Callable[[Event], None]] = []
        past = read_lines(self.path) if self.path else []
        self.run = past[-1]["run"] if past else f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        last = max((int(e.get("attempt", 0)) for e in past), default=0)
        self.attempt = last + 1
        self.unclean = bool(past) and not any(e.get("attempt") == last and e.get("type") in ENDINGS for e in past)
        self.seq = 0
        self.step = 0

    def subscribe(self, subscriber: Callable[[Event], None]) -> None:
        self.subscribers.append(subscriber)

    def emit(self, type: str, severity: str = "info", **data: Any) -> Event:
        self.seq += 1
        event = Event(
            f"{self.run}/{self.attempt}/{self.seq}", self.run, self.attempt, self.seq, type, now(), severity,
            self.step, self.rank, os.environ.get("SIMPLETUNER_JOB_ID"), data,
        )  # fmt: skip
        if self.path:
            record = asdict(event)
            if len(json.dumps(record, default=str)) > MAX_LINE_BYTES:
                record["data"] = {"truncated": True}
            append_line(self.path, record, durable=type in DURABLE)
        for subscriber in list(self.subscribers):
            try:
                subscriber(event)
            except Exception as error:  # noqa: BLE001 - a watcher must not stop the run (reliability.md P7)
                self.subscribers.remove(subscriber)
                self.emit(
                    "warning",
                    "warning",
                    code="subscriber",
                    message=f"{subscriber!r} failed and was dropped: {error}",
                    fix="",
                )
        return event

    def stage(self, key: str, label: str, status: str, **numbers: Any) -> None:
        """A phase of the run: status is started, progress or done."""
        self.emit("run.stage", key=key, label=label, status=status, **numbers)

    def warn(self, code: str, message: str, fix: str = "") -> None:
        self.emit("warning", "warning", code=code, message=message, fix=fix)
