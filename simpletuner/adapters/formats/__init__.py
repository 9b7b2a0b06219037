"""The dialects of LoRA files: which there are, and which one a file is in. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from simpletuner.adapters.formats import bfl, comfyui, diffusers, kohya, onetrainer, xlabs
from simpletuner.adapters.formats.dialect import Dialect, Key

__all__ = ["FORMATS", "Dialect", "Key", "recognised"]

FORMATS = {one.DIALECT.name: one.DIALECT for one in (diffusers, comfyui, kohya, bfl)}  # those that are written
READ = (*FORMATS.values(), onetrainer.DIALECT, xlabs.DIALECT)


def recognised(keys: Iterable[str]) -> list[Dialect]:
    """The dialects that read any of the keys, the one that reads most of them first."""
    keys = list(keys)
    with_alpha = any(key.endswith(".alpha") for key in keys)
    counts = {one.name: sum(one.read(key) is not None for key in keys) for one in READ}
    counts.pop("diffusers" if with_alpha else "comfyui")  # these two differ in nothing else
    return sorted((one for one in READ if counts.get(one.name)), key=lambda one: -counts[one.name])
