"""The quantised weights that a run needs, and which of them lie in their cache: told by names, nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from simpletuner.config import Config
from simpletuner.memory.options import Memory
from simpletuner.models import OnDisk, families
from simpletuner.models.digests import PRECISIONS
from simpletuner.models.options import Model
from simpletuner.models.shapes import Shapes
from simpletuner.plan import memory
from simpletuner.plan.caches import Cache
from simpletuner.quantization import shelf
from simpletuner.quantization.shelf import Entry
from simpletuner.training.options import Speed

DENOISER = "transformer"  # as families call the part


@dataclass(frozen=True)
class Wanted:
    """One part of the model in one kind."""

    part: str
    kind: str
    root: Path
    key: str | None  # None if gigabytes would have to be read to know it
    num_bytes: int  # that it takes, about

    @property
    def title(self) -> str:
        return f"{self.part} {self.kind}"

    @cached_property
    def entry(self) -> Entry | None:
        """What is kept, if it is whole as far as sizes and headers tell."""
        if self.key is None or shelf.flaws(self.root / self.key):
            return None
        return shelf.read(self.root / self.key)


def wanted(config: Config, on_disk: OnDisk, shapes: Shapes, *, encoders: bool = True) -> list[Wanted]:
    """What the cache should hold for a run; nothing if it is off, or if nothing is quantised.

    encoders: text encoders count as well, which a run with all embeddings never loads.
    """
    options, family = config[Memory], families()[config[Model].model_family]
    if not options.quantize_cache:
        return []
    root, computed = shelf.root_of(options.quantize_cache_dir), config[Speed].mixed_precision

    def one(part: str, kind: str, num_bytes: int, dtype: str, keep: Iterable[str] = (), way: str = "") -> Wanted:
        source = on_disk.fingerprint(part)
        key = shelf.key_of(source, kind, keep, PRECISIONS[dtype], way) if source else None
        return Wanted(part, kind, root, key, num_bytes)

    sizes = (
        zip(family.encoders, options.text_kinds, memory.encoder_bytes(config, shapes), strict=True) if encoders else ()
    )
    found = [one(part, kind, num_bytes, computed) for part, kind, num_bytes in sizes if kind]
    if options.quantised:
        dtype, num_bytes = options.base_dtype(computed), memory.base_bytes(config, shapes)
        way = settings(options)
        found.append(one(DENOISER, options.base_model_precision, num_bytes, dtype, family.keep_precise, way))
    return found


def settings(options: Memory) -> str:
    """What decides the bytes besides the kind, as one text."""
    return shelf.way_of(options.quantize_via, pipeline_settings(options))


def pipeline_settings(options: Memory) -> dict[str, Any]:
    """Further arguments for diffusers; of a file, what the reader of configurations found in it."""
    assert not isinstance(options.quantization_config, str), "the reader opens files"
    return options.quantization_config or {}


def summed(found: list[Wanted]) -> Cache:
    """What the cache holds and lacks of these, of which there is at least one."""
    known = all(one.key is not None for one in found)
    own = {one.key for one in found}
    others = [folder for folder in shelf.folders(found[0].root) if folder.name not in own]
    return Cache(
        name="weights",
        needed=len(found),
        present=sum(one.entry is not None for one in found) if known else None,
        stale=len(others) if known else None,
        bytes_present=sum(one.entry.num_bytes for one in found if one.entry),
        bytes_to_make=sum(one.num_bytes for one in found if not one.entry),
        folders=(found[0].root,),
    )
