"""The nouns that pass between parts: Sample, Placement, Batch, Progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Size(NamedTuple):
    """Height, width in pixels. Files and messages print WIDTHxHEIGHT."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def area(self) -> int:
        return self.height * self.width


@dataclass(frozen=True)
class Sample:
    """One image and its words, before any pixels are read."""

    id: str  # "<dataset>/<path>": stable, the address everywhere
    dataset: str
    path: str  # relative to the dataset's root, forward slashes
    size: Size  # after EXIF rotation
    stamp: str  # bytes and mtime_ns, or etag: tells when to read the file again
    captions: tuple[str, ...]  # all variants; each use draws one
    digest: str = ""  # sha256 of the file's bytes; empty until they are first read


@dataclass(frozen=True)
class Placement:
    """How an image becomes a training image; whole numbers, decided without pixels."""

    resize: Size
    crop: tuple[int, int]  # top, left
    bucket: Size  # of the result


@dataclass(frozen=True)
class Batch:
    """What one rank trains on between two backward calls. A forward pass never edits it."""

    ids: tuple[str, ...]
    latents: Tensor  # (B, C, H, W), shifted and scaled, in the model's own scale
    text: Mapping[str, Tensor]  # named by the family: "t5" (B, L, D), "t5_mask" (B, L), "clip" (B, P)
    weight: Tensor  # (B,), loss weight of each sample
    dataset: str
    numbers: tuple[int, ...] = ()  # number of each sample in the run, over all ranks: addresses its draws
    captions: tuple[str, ...] = ()
    mask: Tensor | None = None  # (B, 1, H, W) in [0, 1]
    references: tuple[Tensor, ...] = ()  # Kontext: reference latents, each (B, C, h, w)
    parent_target: bool = False  # regularisation: the base model is the target
    adapter_scale: float = 1.0  # slider sets
    timestep_offset: float = 0.0


@dataclass
class Progress:
    """All the loop state there is."""

    step: int = 0  # optimizer steps taken
    epoch: int = 1  # the epoch being read; counts from 1
    position: int = 0  # micro-batches consumed in this epoch
    samples: int = 0  # consumed by all ranks; numbers the draws


@dataclass(frozen=True)
class Prompt:
    """One validation prompt and what is particular about it; None means the run's setting."""

    nickname: str  # fit for a file name
    text: str
    negative: str | None = None
    seed: int | None = None
    sizes: tuple[Size, ...] = ()
    steps: int | None = None
    guidance: float | None = None
    guidance_real: float | None = None
    adapter_strength: float | None = None
    inputs: tuple[str, ...] = field(default=())


def remark(nickname: str, text: str) -> str:
    """What a prompt's nickname says beyond the prompt, for people: "in_the_set_cat" of "a cat" is "in the set"."""
    said = {word.strip(".,;:!?\"'()").casefold() for word in text.split()}
    words = nickname.replace("_", " ").split()
    while words and words[-1].casefold() in said:
        words.pop()
    return " ".join(words)
