"""What the caches hold of what a run needs, counted by name: no item is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner.config import Config
from simpletuner.data.datasets import Datasets
from simpletuner.data.inventory import take
from simpletuner.data.keys import ENCODER_LETTERS, HEADER_BYTES, item_path, latent_key, text_key
from simpletuner.data.library import Library, Shelf
from simpletuner.models.digests import PRECISIONS
from simpletuner.models.options import Model, ModelMemory
from simpletuner.models.shapes import Shapes
from simpletuner.training.options import Speed


@dataclass(frozen=True)
class Cache:
    """The items of one kind. None: unknown, since the encoder's files would have to be read to name the items."""

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


def text_cache(config: Config, datasets: Datasets, on_disk: Any, shapes: Shapes, texts: Sequence[str]) -> Cache:
    """Embeddings of `texts`, each once."""
    encoder = on_disk.text_fingerprint(PRECISIONS[config[Speed].mixed_precision])
    root, each = datasets.text.cache, shapes.text_bytes + HEADER_BYTES
    if encoder is None:
        return Cache("text", len(texts), None, None, 0, len(texts) * each, (root,))
    wanted = {_place(encoder, text_key(text, encoder)): each for text in texts}
    return _counted("text", {root: wanted})


def image_cache(config: Config, library: Library, on_disk: Any, shapes: Shapes) -> Cache:
    """Latents of all datasets. An image whose content was never read is counted as one that must be encoded."""
    model, parts = config[Model], config[ModelMemory]
    encoder = on_disk.vae_fingerprint(PRECISIONS[model.vae_dtype], parts.vae_enable_tiling)
    folders: dict[Path, dict[str, int]] = {}
    for shelf in library.shelves:
        folders.setdefault(shelf.dataset.cache, {}).update(_latents(shelf, encoder, shapes))
    if encoder is None:
        sizes = [size for wanted in folders.values() for size in wanted.values()]
        return Cache("images", len(sizes), None, None, 0, sum(sizes), tuple(folders))
    return _counted("images", folders)


def _latents(shelf: Shelf, encoder: str | None, shapes: Shapes) -> dict[str, int]:
    """Place of each item below the cache's folder -> its bytes; an item that has no name yet goes by its sample's."""
    wanted = {}
    for sample, placement in shelf.items:
        known = encoder and sample.digest
        name = _place(encoder, latent_key(sample.digest, placement, encoder)) if encoder and known else sample.id
        wanted[name] = shapes.latent_bytes(*placement.bucket) + HEADER_BYTES
    return wanted


def _place(encoder: str, key: str) -> str:
    return f"{encoder[:ENCODER_LETTERS]}/{item_path(key)}"


def _counted(name: str, folders: Mapping[Path, Mapping[str, int]]) -> Cache:
    """folders: for each, the wanted items by place, with the bytes that each is expected to have."""
    needed = present = stale = bytes_present = bytes_to_make = 0
    for root, wanted in folders.items():
        stored = {file.path: file.num_bytes for file in take(root).items}
        here = stored.keys() & wanted.keys()
        needed, present, stale = needed + len(wanted), present + len(here), stale + len(stored) - len(here)
        bytes_present += sum(stored[place] for place in here)
        bytes_to_make += sum(size for place, size in wanted.items() if place not in here)
    return Cache(name, needed, present, stale, bytes_present, bytes_to_make, tuple(folders))
