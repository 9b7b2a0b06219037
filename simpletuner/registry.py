"""A table of names whose code is imported on use: choosing from it costs no torch."""

from __future__ import annotations

import difflib
import importlib
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


def nearest(word: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Known words that `word` was probably meant to be, best first."""
    found = difflib.get_close_matches(word, list(known), n=limit, cutoff=ALIKE)
    best = difflib.SequenceMatcher(None, found[0], word).ratio() if found else 1.0
    return [other for other in found if difflib.SequenceMatcher(None, other, word).ratio() > best - MUCH_LESS_ALIKE]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A fix line for an unknown word; lists all choices if none is near and they are few."""
    known = list(known)
    near = nearest(word, known)
    if near:
        return "did you mean " + " or ".join(f'"{n}"' for n in near) + "?"
    return "choices: " + ", ".join(known) if len(known) <= 12 else "simpletuner train --help lists all"
