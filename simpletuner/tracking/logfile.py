"""run.log: the events of a run as lines of text, for people who read logs."""

from __future__ import annotations

from pathlib import Path

from simpletuner.events import Event
from simpletuner.tracking.words import sentence


class LogFile:
    """Subscribe it to the events. Progress is left out: metrics.jsonl and events.jsonl have it."""

    def __init__(self, logging_dir: Path):
        logging_dir.mkdir(parents=True, exist_ok=True)
        self.path = logging_dir / "run.log"

    def __call__(self, event: Event) -> None:
        text = sentence(event)
        if event.type == "run.stage" and event.data.get("status") != "progress":
            text = f"{event.data.get('label')}: {event.data.get('status')}"
        if text:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{event.time} {event.severity:7} {text}".replace("\n", "\n    ") + "\n")
