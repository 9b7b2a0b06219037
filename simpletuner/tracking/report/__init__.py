"""report.html: what a run was, on one page that works from a disk. Made from the run's files alone; needs no torch."""

from __future__ import annotations

import os
from pathlib import Path

from simpletuner.events import Event, EventLog

FILE = "report.html"
REBUILT_AFTER = ("validation.finished", "run.finished", "run.stopped", "run.failed")


def build(folder: Path, *, embed: bool = False) -> Path:
    """Writes the report of the run in `folder`, whole or not at all; with `embed` the images are inside."""
    from simpletuner.tracking.report import images, page, record

    run = record.read(folder)
    text = page.render(run, images.Embedded(folder) if embed else images.Linked())
    aside = folder / f".{FILE}.{os.getpid()}.tmp"
    aside.write_text(text, "utf-8")
    os.replace(aside, folder / FILE)
    return folder / FILE


class ReportFile:
    """Subscribe it to the events of a run: it writes the report anew when there is something new to see."""

    def __init__(self, output_dir: Path, events: EventLog):
        self.output_dir, self.events = output_dir, events

    def __call__(self, event: Event) -> None:
        if event.type not in REBUILT_AFTER:
            return
        try:
            build(self.output_dir)
        except Exception as error:  # noqa: BLE001 - no page is worth a run
            message = f"{FILE} could not be written: {type(error).__name__}: {error}"
            self.events.warn("report", message, f"simpletuner report {self.output_dir}")
