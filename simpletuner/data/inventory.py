"""What lies in the folder of a cache, told by names alone: items by encoder, damaged ones, leftovers, indexes."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from simpletuner.data.keys import ENCODER_LETTERS
from simpletuner.data.stores.local import LEFTOVER, LocalStore, abandoned

ITEM = re.compile(rf"([0-9a-f]{{{ENCODER_LETTERS}}})/[0-9a-f]{{2}}/([0-9a-f]{{64}})\.safetensors(\.bad)?")
INDEX = re.compile(r"index-(.+)\.sqlite")
LONGEST_HEADER = 1 << 16  # bytes; an item's is a few hundred


class File(NamedTuple):
    """One file of the cache."""

    path: str  # below the root
    encoder: str  # first letters of the fingerprint of what made it
    key: str
    num_bytes: int


@dataclass(frozen=True)
class Inventory:
    """One cache folder."""

    root: Path
    items: tuple[File, ...]
    bad: tuple[File, ...]  # were found damaged and set aside
    abandoned: tuple[str, ...]  # half written by processes that are gone
    indexes: tuple[str, ...]  # ids of the datasets that keep their index here

    def of(self, encoder: str) -> list[File]:
        """The items of one encoder, given by its whole fingerprint."""
        return [item for item in self.items if item.encoder == encoder[:ENCODER_LETTERS]]

    def stale(self, encoder: str) -> list[File]:
        """The items of every other encoder."""
        return [item for item in self.items if item.encoder != encoder[:ENCODER_LETTERS]]

    def unused(self, encoder: str, wanted: Collection[str]) -> list[File]:
        """The items of this encoder whose keys are not among `wanted`."""
        return [item for item in self.of(encoder) if item.key not in wanted]


def take(root: Path) -> Inventory:
    """Lists the folder; opens nothing. A folder that is not there is empty."""
    items: list[File] = []
    bad: list[File] = []
    indexes: list[str] = []
    for listing in LocalStore(root).list():
        if match := ITEM.fullmatch(listing.path):
            file = File(listing.path, match[1], match[2], listing.num_bytes)
            (bad if match[3] else items).append(file)
        elif match := INDEX.fullmatch(listing.path):
            indexes.append(match[1])
    return Inventory(root, tuple(items), tuple(bad), tuple(_abandoned(root)), tuple(sorted(indexes)))


def _abandoned(root: Path) -> Iterator[str]:
    for path in abandoned(root):
        name = path.relative_to(root).as_posix()
        if ITEM.fullmatch(LEFTOVER.sub("", name)):
            yield name


def is_item(root: Path, file: File) -> bool:
    """Whether the file says of itself that it is the item of its name: nothing else is ever deleted."""
    try:
        with (root / file.path).open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            facts = json.loads(opened.read(min(length, LONGEST_HEADER)))["__metadata__"]
        return facts["key"] == file.key and "simpletuner" in facts
    except (OSError, ValueError, KeyError, TypeError):
        return False
