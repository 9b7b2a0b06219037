"""What a dialect of LoRA files is: how the keys of its tensors are read and written. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

DIFFUSERS = "diffusers"
BFL = "https://github.com/black-forest-labs/flux"  # as the model spec names the original implementation

ROLES = {  # how a key ends -> which tensor of a LoRA it is
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_A.default.weight": "A",  # PEFT, with the adapter's name
    "lora_B.default.weight": "B",
    "lora_down.weight": "A",
    "lora_up.weight": "B",
    "alpha": "alpha",
}


class Key(NamedTuple):
    """What a tensor belongs to."""

    layer: tuple[str, ...]  # diffusers' names of the layers that share it, in the order of the output rows
    role: str  # A (r, in), B (out, r) or alpha


@dataclass(frozen=True)
class Dialect:
    """One way to name the tensors of a LoRA, and to cut the layers that they change."""

    name: str
    title: str  # whose names they are, in a sentence
    read: Callable[[str], Key | None]  # a key of a file -> what it is; None if it is not of this dialect
    write: Callable[[str], str] | None = None  # a layer -> how its keys begin; layers that are fused share it
    halves: tuple[str, str] = ("lora_A.weight", "lora_B.weight")  # how the keys of A and B end
    alpha: bool = False  # whether a file holds an alpha for each layer
    original: bool = False  # layers as in the original model: some are fused, and one has its halves swapped

    @property
    def implementation(self) -> str:
        """For `modelspec.implementation`."""
        return DIFFUSERS if self.name == DIFFUSERS else BFL


def ending(key: str) -> tuple[str, str]:
    """(what comes before, role) of a key; the role is empty if it ends like none."""
    for end, role in ROLES.items():
        if key.endswith("." + end):
            return key[: -len(end) - 1], role
    return key, ""
