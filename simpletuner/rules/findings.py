"""What a rule may answer: nothing, one finding or several, each naming the options that it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from simpletuner.errors import Problem

Found: TypeAlias = Problem | None | Iterable[Problem]
Rule: TypeAlias = Callable[..., Found]


def error(message: str, *keys: str, fix: str = "", area: str = "config") -> Problem:
    return Problem(message, area, keys=keys, fix=fix)


def notice(message: str, *keys: str, fix: str = "", area: str = "config") -> Problem:
    return Problem(message, area, severity="notice", keys=keys, fix=fix)


def listed(found: Found) -> list[Problem]:
    """The answer as a list."""
    if found is None:
        return []
    return [found] if isinstance(found, Problem) else list(found)
