"""What the caches of a configuration hold of what a run needs, told by names alone: no item is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from simpletuner.config import Config
from simpletuner.data.datasets import Datasets
from simpletuner.data.inventory import File, Inventory, take
from simpletuner.data.keys import HEADER_BYTES, latent_key, text_key, tiled_instead
from simpletuner.data.library import Library, Shelf
from simpletuner.memory.options import Memory
from simpletuner.models import OnDisk
from simpletuner.models.digests import PRECISIONS
from simpletuner.models.options import Model, ModelMemory
from simpletuner.models.shapes import Shapes
from simpletuner.training.options import Speed, Training
from simpletuner.types import Size

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


def cache_folders(
    config: Config, datasets: Datasets, library: Library, texts: Sequence[str], on_disk: OnDisk, shapes: Shapes
) -> list[Folder]:
    """Every cache folder of the configuration: those of the latents, then that of the embeddings of `texts`."""
    model, output_dir = config[Model], config[Training].output_dir
    dtype = PRECISIONS[model.vae_dtype]
    vae = on_disk.vae_fingerprint(dtype, config[ModelMemory].vae_enable_tiling)
    if vae and any(tiled_instead(shelf.dataset.cache, vae) for shelf in library.shelves):
        vae = on_disk.vae_fingerprint(dtype, True)
    text = on_disk.text_fingerprint(PRECISIONS[config[Speed].mixed_precision], config[Memory].text_kinds)
    parts = _latent_parts(library, vae, shapes)
    found = [Folder("vae", vae, tuple(some), take(root), output_dir) for root, some in parts.items()]
    return [*found, Folder("text", text, (_text_part(texts, text, shapes),), take(datasets.text.cache), output_dir)]


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


@dataclass(frozen=True)
class Cache:
    """The items of one kind, in all its folders. None: unknown, since the encoder's files would have to be read."""

    name: str
    needed: int
    present: int | None
    stale: int | None  # in the same folders and not of use to this run; other runs may use them
    bytes_present: int
    bytes_to_make: int  # an estimate
    folders: tuple[Path, ...]

    @property
    def to_make(self) -> int:
        return self.needed - (self.present or 0)


def summed(name: str, some: Sequence[Folder]) -> Cache:
    """What these folders hold and lack together; an item that several datasets need counts once."""
    known = all(folder.encoder is not None for folder in some)
    here = [folder.stored[key] for folder in some for key in folder.wanted if key in folder.stored]
    missing = [item for folder in some for key, item in folder.wanted.items() if key not in folder.stored]
    unnamed = [part for folder in some for part in folder.parts]
    num_bytes = sum(item.num_bytes + HEADER_BYTES for item in missing) + sum(part.unnamed_bytes for part in unnamed)
    return Cache(
        name=name,
        needed=len(here) + len(missing) + sum(part.unnamed for part in unnamed),
        present=len(here) if known else None,
        stale=sum(len(folder.stale) + len(folder.unused) for folder in some) if known else None,
        bytes_present=sum(file.num_bytes for file in here),
        bytes_to_make=num_bytes,
        folders=tuple(folder.root for folder in some),
    )
