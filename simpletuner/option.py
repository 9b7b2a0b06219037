"""One option as plain data, and the marks that its declaration may carry. Every surface reads this, never the class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class Level:
    """Who needs to see the option."""

    def __init__(self, name: str):
        self.name = name


Basic = Level("basic")  # shown by --help, asked by the wizard
Expert = Level("expert")  # shown by --help-all


class _Given:
    """Equals every value that switches an option on, so that a condition can ask for any of them."""

    def __eq__(self, other: object) -> bool:
        return bool(other) and other not in ("none", "no", ["none"])

    __hash__ = None  # type: ignore[assignment]  # it equals values of many hashes

    def __repr__(self) -> str:
        return "GIVEN"


GIVEN = _Given()


class _Lines:
    """Marks a text that may also be written as a list of texts, its lines."""


Lines = _Lines()


@dataclass(frozen=True)
class Unit:
    """Shown behind the value: "px", "steps", "seconds"."""

    name: str


@dataclass(frozen=True)
class Former:
    """Names under which the option used to be known."""

    names: tuple[str, ...]

    def __init__(self, *names: str):
        object.__setattr__(self, "names", names)


@dataclass(frozen=True)
class Meaning:
    """One line for each choice of a Literal."""

    lines: Mapping[str, str]


@dataclass(frozen=True)
class When:
    """The option has an effect only while another option has one of these values; GIVEN stands for any but "off"."""

    key: str
    values: tuple[Any, ...]

    def __init__(self, **condition: Any):
        ((key, value),) = condition.items()
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "values", value if isinstance(value, tuple) else (value,))

    def holds(self, value: Any) -> bool:
        """Whether the other option, being `value`, lets this one have an effect."""
        return value in self.values

    def __str__(self) -> str:
        if any(value is GIVEN for value in self.values):
            return f"{self.key} is set"
        return f"{self.key}={'|'.join(str(v).lower() if isinstance(v, bool) else str(v) for v in self.values)}"


@dataclass(frozen=True)
class Option:
    """One option as plain data."""

    key: str
    kind: str  # bool, int, float, text, lines, path, choice, list, object
    default: Any
    help: str
    group: str
    level: str  # basic, standard, expert
    choices: tuple[tuple[str, str], ...] = ()  # (name, help) of a choice, or of what a list may hold
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    unit: str = ""
    when: When | None = None
    former: tuple[str, ...] = ()
    optional: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.key

    @property
    def bounds(self) -> str:
        """The allowed range as people write it: "(0, 1]"; empty if there is none."""
        if self.low is None and self.high is None:
            return ""
        if self.high is None:
            return f"{'>' if self.low_open else '>='} {self.low:g}"
        if self.low is None:
            return f"{'<' if self.high_open else '<='} {self.high:g}"
        return f"{'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"

    @property
    def within(self) -> str:
        """The bounds as the end of a sentence: "in (0, 1]", ">= 1"."""
        return f"in {self.bounds}" if self.bounds[:1] in ("(", "[") else self.bounds


@dataclass(frozen=True)
class Raw:
    """A value as it was written, with its origin."""

    value: Any
    origin: str  # label shown to people: "config/config.json:14:3", "command line"
    written: str = ""  # the former name, or the name in config.env, under which it was given
