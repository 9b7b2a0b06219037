"""Model families. A folder here is a family: it is found by looking, nothing is registered.

This half is torch-free, so that help, checks and forms can list families in milliseconds.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from simpletuner.errors import ConfigError
from simpletuner.models.options import Model
from simpletuner.models.places import Place
from simpletuner.models.shapes import Shapes
from simpletuner.registry import Entry, did_you_mean
from simpletuner.schema import Group


@dataclass(frozen=True)
class Flavour:
    """One release of a family."""

    name: str
    repository: str  # hub id, or a folder that comes with the package
    licence: str  # as people say it
    licence_id: str  # as the hub's model card says it
    gated: bool = False
    guidance: bool = True  # expected; the tensors found decide
    text_length: int | None = 512  # longest caption in T5 tokens; None: what the tokenizer says
    alignment: int = 64  # image edges are multiples of it, in pixels
    architecture: str = ""  # modelspec.architecture
    defaults: Mapping[str, Any] = field(default_factory=dict)  # option -> value, below anything the user sets
    later: str = ""  # what it needs that does not exist yet; empty: usable


class OnDisk(Protocol):
    """What of a model is on this disk. Fingerprints name its caches; None if gigabytes would have to be read first."""

    @property
    def place(self) -> Place: ...
    @property
    def missing(self) -> tuple[str, ...]: ...  # parts
    def bytes_to_fetch(self, shapes: Shapes) -> int: ...
    def fingerprint(self, part: str) -> str | None: ...
    def text_fingerprint(self, dtype: str, kinds: Sequence[str]) -> str | None: ...  # kinds: of quantised encoders
    def vae_fingerprint(self, dtype: str, tiling: bool) -> str | None: ...


@dataclass(frozen=True)
class FamilyRecord:
    """What is known about a family without torch."""

    name: str
    title: str
    flavours: Mapping[str, Flavour]
    options: tuple[type[Group], ...]
    lora_targets: Mapping[str, tuple[str, ...]]  # preset -> module names
    fused_names: Mapping[str, tuple[str, ...]]  # name in fused files -> the modules it stands for
    keep_precise: tuple[str, ...]  # modules that no quantiser touches
    encoders: tuple[str, ...]  # parts that encode text, in the order of text_encoder_<n>_precision
    target: str  # "module:Class" of the torch half
    sizes: str  # "module:function" (Model, Flavour) -> Shapes
    disk: str  # "module:Class" (Model, Flavour): what of it is on this disk, without torch

    def flavour(self, name: str) -> Flavour:
        if name not in self.flavours:
            raise ConfigError(f'{self.title} has no flavour "{name}"', fix=did_you_mean(name, self.flavours))
        return self.flavours[name]

    def targets(self, preset: str, names: Iterable[str] | None = None) -> tuple[str, ...]:
        """Module names to adapt: the user's own, with fused names taken apart, else those of the preset."""
        if names is None:
            return self.lora_targets[preset]
        parts = [part for name in names for part in self.fused_names.get(name, (name,))]
        return tuple(dict.fromkeys(parts))

    def shapes(self, model: Model) -> Shapes:
        """The sizes of the model that the options name; reads no weights and no torch."""
        return Entry(self.sizes, self.title).load()(model, self.flavour(model.model_flavour))

    def on_disk(self, model: Model) -> OnDisk:
        """What of the model that the options name is on this disk; asks no network and loads no torch."""
        return Entry(self.disk, self.title).load()(model, self.flavour(model.model_flavour))

    def load(self) -> Any:
        """The class of the torch half."""
        return Entry(self.target, self.title).load()


@cache
def families() -> dict[str, FamilyRecord]:
    """Every family by name."""
    folders = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    return {name: importlib.import_module(f"{__name__}.{name}").RECORD for name in folders}
