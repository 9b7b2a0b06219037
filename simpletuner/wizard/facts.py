"""What is seen while the questions are asked: folders that hold pictures, and what a dataset would make of one."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner import inspection
from simpletuner.check import read_datasets
from simpletuner.config import Config
from simpletuner.data.library import Library, Shelf
from simpletuner.data.scan import is_image
from simpletuner.errors import Problem

DEPTH, MOST_FOLDERS = 3, 500  # of the search for pictures: it must not wander through a whole disk
NOT_PICTURES = ("simpletuner-results", "node_modules", "cache", "venv", "site-packages")


@dataclass(frozen=True)
class Survey:
    """What a scan of one dataset found."""

    library: Library
    problems: tuple[Problem, ...]

    @property
    def shelf(self) -> Shelf | None:
        return self.library.shelves[0] if self.library.shelves else None

    @property
    def buckets(self) -> list[tuple[int, int]]:
        """(height, width) in pixels of the batches."""
        items = self.shelf.items if self.shelf else []
        sizes = [item.placement.bucket for item in items]
        return list(dict.fromkeys((size.height, size.width) for size in sizes))


class Gallery:
    """Surveys datasets that exist only as answers: index and lists go to a folder of its own, which `close` removes.

    Each file is opened once, however often the answers change.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="simpletuner-configure-"))

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def survey(self, config: Config, entry: Mapping[str, Any]) -> tuple[Survey | None, list[Problem]]:
        """(what the scan found, problems of the entry). The former is None if the entry cannot be used."""
        index = abs(hash(str(entry.get("instance_data_dir"))))
        file = self.folder / "datasets.json"
        file.write_text(json.dumps([{**entry, "cache_dir_vae": str(self.folder / f"{index:x}")}]), "utf-8")
        aside = config.changed(data_backend_config=file, cache_dir_text=None, output_dir=self.folder)
        datasets, problems = read_datasets(aside)
        if datasets is None:
            return None, problems
        library, found = inspection.survey(config, datasets)
        library.close()
        return Survey(library, tuple(found)), problems


def folders_of_pictures(start: Path) -> list[tuple[str, int]]:
    """(folder, images in it and below) near `start`, most images first; a folder is named if it holds some itself."""
    own: dict[str, int] = {}
    for number, (folder, below, files) in enumerate(os.walk(start)):
        depth = len(Path(folder).relative_to(start).parts)
        hidden = [name for name in below if name.startswith((".", "_")) or name in NOT_PICTURES]
        below[:] = [] if depth >= DEPTH else sorted(name for name in below if name not in hidden)
        if number >= MOST_FOLDERS:
            break
        if count := sum(map(is_image, files)):
            own[os.path.relpath(folder, start)] = count
    sums = {name: sum(n for other, n in own.items() if _within(other, name)) for name in own}
    return sorted(sums.items(), key=lambda pair: (-pair[1], len(pair[0]), pair[0]))


def _within(path: str, folder: str) -> bool:
    return folder == "." or path == folder or path.startswith(folder + os.sep)
