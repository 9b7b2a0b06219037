"""The caches of a configuration, looked after: what they hold of what a run needs, what is of no use, what is damaged.

Which items a run needs is asked where the run asks. Only `flaws` loads torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from simpletuner import inspection
from simpletuner.check import Checked
from simpletuner.data.ahead import ahead, threads
from simpletuner.data.inventory import File, Inventory, is_item, take
from simpletuner.data.keys import HEADER_BYTES, latent_key, text_key
from simpletuner.data.library import Library, Shelf
from simpletuner.errors import Problem
from simpletuner.events import EventLog
from simpletuner.models import families
from simpletuner.models.digests import PRECISIONS
from simpletuner.models.options import Model, ModelMemory
from simpletuner.models.shapes import Shapes
from simpletuner.plan import needs
from simpletuner.training.options import Speed, Training
from simpletuner.types import Size

READERS = 8  # threads at most: more would only wait for the disk
Kind = Literal["vae", "text"]


class Item(NamedTuple):
    """An item that a run needs."""

    of: str  # the picture's path, or the text
    num_bytes: int  # of its tensors
    picture: Size | None  # that a latent is made from, as it is cropped


@dataclass(frozen=True)
class Part:
    """What one dataset, or all texts together, need of a cache folder."""

    name: str
    wanted: Mapping[str, Item]  # by key; empty if the keys are unknown, as the encoder is
    unnamed: int = 0  # items whose key is unknown: the encoder is, or the picture was never read
    unnamed_bytes: int = 0

    @property
    def needed(self) -> int:
        return len(self.wanted) + self.unnamed


@dataclass(frozen=True)
class Folder:
    """One cache folder: what lies in it, and what this configuration needs of it."""

    kind: Kind
    encoder: str | None  # fingerprint; None if gigabytes would have to be read to know it
    parts: tuple[Part, ...]
    inventory: Inventory
    output_dir: Path

    @property
    def root(self) -> Path:
        return self.inventory.root

    @cached_property
    def stored(self) -> dict[str, File]:
        """The items of this encoder by key."""
        return {file.key: file for file in self.inventory.of(self.encoder)} if self.encoder else {}

    @cached_property
    def wanted(self) -> dict[str, Item]:
        return {key: item for part in self.parts for key, item in part.wanted.items()}

    @property
    def stale(self) -> list[File]:
        """Items of other encoders: another model, precision or length, or an earlier version."""
        return self.inventory.stale(self.encoder) if self.encoder else []

    @property
    def unused(self) -> list[File]:
        """Items of this encoder that the configuration does not ask for."""
        return self.inventory.unused(self.encoder, self.wanted) if self.encoder else []

    @property
    def others(self) -> list[str]:
        """Datasets of other configurations that keep their index here."""
        own = {part.name for part in self.parts}
        return [id for id in self.inventory.indexes if id not in own]

    @property
    def shared(self) -> bool:
        """Whether other configurations may use this folder."""
        return bool(self.others) or self.output_dir.resolve() not in self.root.resolve().parents

    def present(self, part: Part) -> list[File]:
        return [self.stored[key] for key in part.wanted if key in self.stored]

    def bytes_missing(self, part: Part) -> int:
        """That making what is missing will take, about."""
        missing = [item.num_bytes + HEADER_BYTES for key, item in part.wanted.items() if key not in self.stored]
        return sum(missing) + part.unnamed_bytes


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
        model, output_dir = config[Model], config[Training].output_dir
        record = families()[model.model_family]
        on_disk, shapes = record.on_disk(model), record.shapes(model)
        vae = on_disk.vae_fingerprint(PRECISIONS[model.vae_dtype], config[ModelMemory].vae_enable_tiling)
        text = on_disk.text_fingerprint(PRECISIONS[config[Speed].mixed_precision])
        texts = needs.texts(config, library, needs.prompts(config, datasets, library))
        parts = _latent_parts(library, vae, shapes)
        found = [Folder("vae", vae, tuple(some), take(root), output_dir) for root, some in parts.items()]
        root = datasets.text.cache
        found.append(Folder("text", text, (_text_part(texts, text, shapes),), take(root), output_dir))
        return found, problems
    finally:
        library.close()


def _latent_parts(library: Library, encoder: str | None, shapes: Shapes) -> dict[Path, list[Part]]:
    """By cache folder; several datasets may have the same."""
    found: dict[Path, list[Part]] = {}
    for shelf in library.shelves:
        found.setdefault(shelf.dataset.cache, []).append(_latent_part(shelf, encoder, shapes))
    return found


def _latent_part(shelf: Shelf, encoder: str | None, shapes: Shapes) -> Part:
    wanted: dict[str, Item] = {}
    unnamed: list[int] = []
    for sample, placement in shelf.items:
        num_bytes = shapes.latent_bytes(*placement.bucket)
        if encoder and sample.digest:
            key = latent_key(sample.digest, placement, encoder)
            wanted[key] = Item(sample.path, num_bytes, placement.bucket)
        else:
            unnamed.append(num_bytes + HEADER_BYTES)
    return Part(shelf.id, wanted, len(unnamed), sum(unnamed))


def _text_part(texts: Sequence[str], encoder: str | None, shapes: Shapes) -> Part:
    if encoder is None:
        return Part("text", {}, len(texts), len(texts) * (shapes.text_bytes + HEADER_BYTES))
    return Part("text", {text_key(text, encoder): Item(text, shapes.text_bytes, None) for text in texts})


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


# ---- what is damaged


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
