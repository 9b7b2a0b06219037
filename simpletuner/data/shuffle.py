"""The parts of a caption in other orders, as further variants (data.md section 7.5)."""

from __future__ import annotations

from math import factorial, prod
from typing import Annotated, Literal

from simpletuner.diffusion import draw
from simpletuner.schema import Ge, Group, Meaning

SEPARATORS = {"comma": (",", ", "), "space": (" ", " "), "period": (".", ". ")}  # where to cut, how to join


class Shuffle(Group, title="caption_shuffle"):
    """The object `caption_shuffle` of a dataset."""

    enable: bool = False
    """Adds shuffled variants of each caption; each is one more text to encode."""
    count: Annotated[int, Ge(1)] = 1
    """How many orders of each caption are added; 4 MiB of cache for each on FLUX.1."""
    seed: str | None = None
    """Decides the orders; unset means the dataset's id, so that a new seed of the run makes no new texts."""
    split_on: Annotated[
        Literal["comma", "space", "period"],
        Meaning({"comma": "lists of tags", "space": "every word", "period": "whole sentences"}),
    ] = "comma"
    """Where captions are cut into parts."""
    position_start: Annotated[int, Ge(0)] = 0
    """How many parts stay in front, so that a trigger word keeps its place."""
    include_original: bool = True
    """Keeps the order that was written as a variant."""

    def parts(self, caption: str) -> list[str]:
        """The caption cut up, without empty parts."""
        return [part for part in map(str.strip, caption.split(SEPARATORS[self.split_on][0])) if part]

    def orders(self, caption: str) -> int:
        """How many other orders of the caption there are."""
        loose = self.parts(caption)[self.position_start :]
        if len(loose) < 2:
            return 0
        return factorial(len(loose)) // prod(factorial(loose.count(part)) for part in set(loose)) - 1

    def variants(self, caption: str, sample_id: str, dataset_id: str) -> list[str]:
        """The caption, unless it is to go, and `count` distinct other orders of it, or as many as there are."""
        wanted = min(self.count, self.orders(caption))
        if not wanted:
            return [caption]
        parts, mark = self.parts(caption), SEPARATORS[self.split_on][1]
        end = "." if self.split_on == "period" and caption.endswith(".") else ""
        fixed, loose = parts[: self.position_start], parts[self.position_start :]
        found: dict[tuple[str, ...], None] = {}
        number = 0
        while len(found) < wanted:
            address = ("shuffle", self.seed or dataset_id, sample_id, number)
            ranks = [draw.draw(*address, place) for place in range(len(loose))]
            order = tuple(part for _, part in sorted(zip(ranks, loose, strict=True)))
            if order != tuple(loose):
                found[order] = None
            number += 1
        return [caption] * self.include_original + [mark.join([*fixed, *order]) + end for order in found]
