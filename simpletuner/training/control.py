"""Commands to a running trainer: lines that others append to control.jsonl, read between steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simpletuner.events import EventLog, read_lines

COMMANDS = ("stop", "checkpoint", "validate")


class Control:
    """Reads each command once and answers it with an event. Older lines are refused as stale."""

    def __init__(self, output_dir: Path, events: EventLog):
        self.path = output_dir / "control.jsonl"
        self.events = events
        self._bytes = 0
        self._answered = {
            e["data"].get("id")
            for e in read_lines(output_dir / "events.jsonl")
            if str(e.get("type")).startswith("control.")
        }
        for record in self._new():
            self._refuse(record, "written before this run started")

    def commands(self) -> list[str]:
        """New commands, in order of arrival."""
        accepted = []
        for record in self._new():
            command = record.get("command")
            if command in COMMANDS:
                self.events.emit("control.accepted", id=record.get("id"), command=command, reason="")
                accepted.append(command)
            else:
                self._refuse(record, f"unknown command; choices: {', '.join(COMMANDS)}")
        return accepted

    def _new(self) -> list[dict[str, Any]]:
        size = self.path.stat().st_size if self.path.exists() else 0
        if size == self._bytes:
            return []
        self._bytes = size
        fresh = {r.get("id"): r for r in reversed(read_lines(self.path)) if r.get("id") not in self._answered}
        self._answered |= set(fresh)
        return list(reversed(fresh.values()))

    def _refuse(self, record: dict[str, Any], reason: str) -> None:
        self.events.emit(
            "control.refused", "warning", id=record.get("id"), command=record.get("command"), reason=reason
        )
