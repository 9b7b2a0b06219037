"""Keys as people write them become options: former names are read, and every key that is no option gets its finding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from simpletuner import retired, schema
from simpletuner.errors import Problem
from simpletuner.groups import FORMER, OPTIONS
from simpletuner.schema import Raw
from simpletuner.values import unquoted

Layer = Iterable[tuple[str, Raw]]  # canonical keys as they are written in one source; one key may come twice


def known(key: str) -> bool:
    """Whether a key means anything here: an option, a former name, or a key that the tables answer."""
    return key in OPTIONS or key in FORMER or retired.settle(key, None, "")[0]


def settle(layer: Layer, problems: list[Problem]) -> dict[str, Raw]:
    """The layer under present names; findings about every key that is no option, and about one that is given twice."""
    settled: dict[str, Raw] = {}
    for written, raw in layer:
        raw = replace(raw, value=unquoted(raw.value))
        if schema.is_unset(written, raw.value):
            if not known(written):
                problems.append(_unknown(written, raw.origin))
            continue
        key, value, notice = _rename(written, raw)
        problems += [notice] if notice else []
        if key not in OPTIONS:
            answered, finding = retired.settle(key, value, raw.origin)
            problems += [finding] if finding else []
            if not answered:
                problems.append(_unknown(key, raw.origin))
        elif refused := retired.refused_value(key, value, raw.origin):
            problems.append(refused)
        else:
            now = replace(raw, value=value, written=raw.written or ("" if key == written else written))
            if key in settled:
                problems.append(_twice(key, settled[key], now))
            settled[key] = now
    return settled


def _unknown(key: str, where: str) -> Problem:
    return schema.unknown_key(key, OPTIONS, where, retired.answered(), FORMER)


def _rename(written: str, raw: Raw) -> tuple[str, Any, Problem | None]:
    if written not in FORMER or written in retired.FORMER:
        return retired.rename(written, raw.value, raw.origin)
    key = FORMER[written]  # a former name that is declared beside its option
    return key, raw.value, Problem(f"{written} is now called {key}", severity="notice", where=raw.origin, keys=(key,))


def _twice(key: str, first: Raw, second: Raw) -> Problem:
    """The finding about a key that one source gives under two names."""
    names = " and ".join(dict.fromkeys(raw.written for raw in (first, second) if raw.written))
    once = f", once as {names}" if names else ""
    where = f"{first.origin} and {second.origin}"
    if equal(key, first.value, second.value):
        message = f"{key} is given twice with equal values{once}"
        return Problem(message, severity="notice", where=where, fix="keep one", keys=(key,))
    message = f"{key} is given twice with different values{once}"
    return Problem(message, where=where, fix="keep one", keys=(key,))


def equal(key: str, one: Any, other: Any) -> bool:
    """Whether two written values mean the same for the option."""
    try:
        return schema.convert(OPTIONS[key], one) == schema.convert(OPTIONS[key], other)
    except ValueError:
        return str(one) == str(other)


def clashes(beneath: Mapping[str, Raw], above: Mapping[str, Raw]) -> list[Problem]:
    """A notice for each option that config.env gives another value than the file over it."""
    found = []
    for key in beneath.keys() & above.keys():
        low, high = beneath[key], above[key]
        if not equal(key, low.value, high.value):
            message = f"{key} has two values; {schema.shown(high.value)} of {high.origin} is used"
            found.append(Problem(message, severity="notice", where=f"{low.origin} and {high.origin}", keys=(key,)))
    return sorted(found, key=lambda problem: problem.keys)
