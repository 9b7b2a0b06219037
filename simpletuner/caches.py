"""The caches of a configuration, looked after: what they hold of what a run needs, what is of no use, what is damaged.

Which items a run needs is asked where the run asks. Only `flaws` loads torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from simpletuner import inspection
from simpletuner.check import Checked
from simpletuner.data.ahead import ahead, threads
from simpletuner.data.inventory import File, is_item
from simpletuner.errors import Problem
from simpletuner.events import EventLog
from simpletuner.models import families
from simpletuner.models.options import Model
from simpletuner.plan import needs, quantised
from simpletuner.plan.caches import Folder, cache_folders
from simpletuner.plan.quantised import Wanted
from simpletuner.quantization import shelf

READERS = 8  # threads at most: more would only wait for the disk


def survey(checked: Checked, *, read: bool = False) -> tuple[list[Folder], list[Problem]]:
    """Every cache folder of the configuration, and what is wrong with its datasets.

    With `read`, pictures that were never read are, so that every item has its name.
    """
    assert checked.datasets is not None
    config, datasets = checked.config, checked.datasets
    library, problems = inspection.survey(config, datasets)
    try:
        if read:
            for shelf in library.shelves:
                shelf.hash()
        record, model = families()[config[Model].model_family], config[Model]
        texts = needs.texts(config, library, needs.prompts(config, datasets, library))
        found = cache_folders(config, datasets, library, texts, record.on_disk(model), record.shapes(model))
        return found, problems
    finally:
        library.close()


def weights(checked: Checked) -> list[Wanted]:
    """The quantised weights that the configuration asks for."""
    config = checked.config
    record, model = families()[config[Model].model_family], config[Model]
    return quantised.wanted(config, record.on_disk(model), record.shapes(model))


# ---- what is of no use


def unknown(folders: Sequence[Folder]) -> list[Problem]:
    """An error for each folder of which nobody can say what a run needs in it."""
    return [
        Problem(
            f"{folder.root}: which items are in use is not known before the model's files were read once",
            "cache",
            fix="simpletuner cache build",
        )
        for folder in folders
        if folder.encoder is None
    ]


def waste(folder: Folder) -> dict[str, list[File]]:
    """What `prune` would remove, by reason; of other encoders only what says of itself that it is an item."""
    found = {
        "stale": folder.stale,
        "unused": folder.unused,
        "damaged": list(folder.inventory.bad),
        "half written": [File(path, "", "", _num_bytes(folder.root / path)) for path in folder.inventory.abandoned],
    }
    for reason in ("stale", "unused"):
        found[reason] = [file for file in found[reason] if is_item(folder.root, file)]
    return {reason: files for reason, files in found.items() if files}


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def remove(folder: Folder, files: Sequence[File]) -> None:
    """Deletes files of the cache; one that is gone already is no error."""
    for file in files:
        (folder.root / file.path).unlink(missing_ok=True)


def unused_weights(found: Sequence[Wanted]) -> dict[str, list[Path]]:
    """Folders of quantised weights that `prune` would remove, by reason: of other models and kinds, and leftovers."""
    own, roots = {one.key for one in found}, sorted({one.root for one in found})
    reasons = {
        "unused": [folder for root in roots for folder in shelf.folders(root) if folder.name not in own],
        "half written": [folder for root in roots for folder in shelf.abandoned(root)],
    }
    return {reason: folders for reason, folders in reasons.items() if folders}


# ---- what is damaged


def damaged_weights(found: Sequence[Wanted]) -> dict[Path, str]:
    """Folder -> what is wrong with it, of those that are asked for and there. Reads every byte."""
    there = [one.root / one.key for one in found if one.key and (one.root / one.key).is_dir()]
    wrong = {folder: shelf.damaged(folder) for folder in there}
    return {folder: problems[0] for folder, problems in wrong.items() if problems}


class Flaw(NamedTuple):
    """A damaged item."""

    file: File
    of: str | None  # what it was made from; None if this configuration does not ask for it
    problem: str


def flaws(folder: Folder, events: EventLog) -> Iterator[Flaw]:
    """Reads every item of the encoder in use: checksum, size, shape, and whether all numbers are finite."""
    from simpletuner.data.cache import TensorCache
    from simpletuner.data.fill import Meter

    if not folder.encoder or not folder.stored:
        return
    cache = TensorCache.at(folder.root, folder.encoder, folder.kind)
    every_text = next((item.num_bytes for item in folder.wanted.values()), None) if folder.kind == "text" else None

    def flaw(file: File) -> str:
        item = folder.wanted.get(file.key)
        return cache.flaw(file.key, item.num_bytes if item else every_text, item.picture if item else None)

    names = ", ".join(part.name for part in folder.parts) if folder.kind == "vae" else ""
    meter = Meter(events, names, folder.kind, len(folder.stored), 0)
    workers = threads(READERS)
    for file, problem in ahead(folder.stored.values(), flaw, workers=workers, limit=4 * workers):
        meter.add(1)
        if problem:
            item = folder.wanted.get(file.key)
            yield Flaw(file, item.of if item else None, problem)
