"""Looking at datasets before training on them: numbers, a page with thumbnails, sheets of crops. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from simpletuner.config import Config
from simpletuner.data import library as libraries
from simpletuner.data.datasets import Datasets, ImageSet
from simpletuner.data.index import Index
from simpletuner.data.library import Library, Shelf, index_path
from simpletuner.data.options import Data
from simpletuner.errors import Problem, Severity
from simpletuner.events import Event, EventLog
from simpletuner.training.options import Training


def survey(config: Config, datasets: Datasets, only: str | None = None) -> tuple[Library, list[Problem]]:
    """All datasets as a run would meet them, or `only` one, and all that there is to say. Close the library when done.

    Nothing of it is raised: errors are problems in the way of a training, and notices come along.
    """
    training, events = config[Training], EventLog(None)
    told: list[Problem] = []
    events.subscribe(lambda event: told.extend(warned(event, "dataset")))
    if only:
        datasets = replace(datasets, images=tuple(image for image in datasets.images if image.id == only))
    library, problems = libraries.survey(
        datasets,
        config[Data],
        batch_size=training.train_batch_size,
        accumulation=training.gradient_accumulation_steps,
        ranks=1,
        events=events,
    )
    return library, [*problems, *told]


def warned(event: Event, area: str) -> list[Problem]:
    """What an event warns of; nothing for the others."""
    if event.type != "warning":
        return []
    severity: Severity = "notice" if event.severity == "notice" else "warning"
    return [Problem(event.data["message"], area, severity, fix=event.data.get("fix", ""))]


@dataclass(frozen=True)
class Scanned:
    """What a scan of one dataset has done."""

    id: str
    found: int  # image files
    used: int
    headers_read: int
    files_read: int
    changed: int  # files that had other bytes at the last reading

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        read = [f"{self.headers_read} headers read"]
        if self.files_read:
            read = [f"{self.files_read} files read and decoded", f"{self.changed} changed since they were last read"]
        return f"{self.id}: {self.used} of {self.found} images are used; {', '.join(read)}"


def scan(config: Config, datasets: Datasets, *, again: bool = False) -> tuple[list[Scanned], list[Problem]]:
    """Brings the index of each dataset up to date; with `again`, from every byte of every file."""
    before = {image.id: forget(image) for image in datasets.images} if again else {}
    library, problems = survey(config, datasets)
    try:
        files = {shelf.id: shelf.hash(decode=True) if again else 0 for shelf in library.shelves}
        return [_scanned(shelf, files[shelf.id], before.get(shelf.id, {})) for shelf in library.shelves], problems
    finally:
        library.close()


def forget(dataset: ImageSet) -> dict[str, str]:
    """Empties the index of a dataset, so that the next survey reads all of it; the digests that it knew, by path."""
    index = Index(index_path(dataset))
    try:
        rows = index.rows()
        index.remove(rows)
    finally:
        index.close()
    return {path: row.digest for path, row in rows.items() if row.digest}


def _scanned(shelf: Shelf, files: int, before: Mapping[str, str]) -> Scanned:
    found = len(shelf.items) + len(shelf.scan.left_out) + shelf.scan.beyond_subset
    now = {item.sample.path: item.sample.digest for item in shelf.items}
    changed = sum(before[path] != digest for path, digest in now.items() if path in before)
    return Scanned(shelf.id, found, len(shelf.items), shelf.scan.headers_read, files, changed)
