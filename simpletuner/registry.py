"""A table of names whose code is imported on use: choosing from it costs no torch."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simpletuner.errors import ConfigError

ALIKE, MUCH_LESS_ALIKE = 0.6, 0.1  # of difflib's ratio, which is 1 for equal words


@dataclass(frozen=True)
class Entry:
    """One choice: where its code lives ("module:attribute"), its help, its default arguments, the extra it needs."""

    target: str
    help: str
    needs: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """The object behind the entry. ConfigError names the extra to install if its package is missing."""
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if not self.needs:
                raise
            raise ConfigError(
                f"{error.name} is not installed", fix=f"pip install 'simpletuner[{self.needs}]'"
            ) from error


def _ratio(word: str, other: str) -> float:
    return difflib.SequenceMatcher(None, other, word).ratio()


def one_slip_apart(word: str, other: str) -> bool:
    """Whether one letter left out, put in or mistaken, or two swapped, makes one word of the other."""
    if word == other or abs(len(word) - len(other)) > 1:
        return False
    shorter = min(len(word), len(other))
    start = next((i for i in range(shorter) if word[i] != other[i]), shorter)
    end = next((i for i in range(shorter - start) if word[-1 - i] != other[-1 - i]), shorter - start)
    between = word[start : len(word) - end], other[start : len(other) - end]
    return max(map(len, between)) == 1 or (len(between[0]) == 2 and between[0] == between[1][::-1])


def nearest(word: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Known words that `word` was probably meant to be, best first.

    One slip of a finger is the likeliest mistake, then a word that is one part of others, such as adam of torch-adam.
    """
    known, word = list(dict.fromkeys(known)), word.lower()
    slips = [other for other in known if one_slip_apart(word, other.lower())]
    same = [other for other in known if other.lower() == word]
    if same or slips:
        return (same or sorted(slips, key=lambda other: -_ratio(word, other)))[:limit]
    whole = [other for other in known if word in re.split("[-_+]", other.lower())]
    if 0 < len(whole) <= limit:
        return whole
    found = difflib.get_close_matches(word, known, n=limit, cutoff=ALIKE)
    best = _ratio(word, found[0]) if found else 1.0
    return [other for other in found if _ratio(word, other) > best - MUCH_LESS_ALIKE]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A fix line for an unknown word; lists all choices if none is near and they are few."""
    known = list(known)
    near = nearest(word, known)
    if near:
        return meant(near)
    return "choices: " + ", ".join(known) if len(known) <= 12 else "simpletuner train --help lists all"


def meant(words: Iterable[str]) -> str:
    """The question whether one of these was meant."""
    return "did you mean " + " or ".join(f'"{word}"' for word in words) + "?"
