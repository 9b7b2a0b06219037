"""Options as words: on the command line, and in the variable TRAINER_EXTRA_ARGS."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from simpletuner import naming, reading, schema
from simpletuner.errors import Problem
from simpletuner.groups import FORMER, OPTIONS
from simpletuner.schema import Option


def command_line(words: Sequence[str], where: str = "command line") -> tuple[dict[str, Any], list[Problem]]:
    """Options from words: key=value, --key value, --key=value, --flag, --no-flag. Text only; `load` converts."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []

    def give(key: str, value: Any) -> None:
        if key in values:
            problems.append(_twice(key, values[key], value, where))
        values[key] = value

    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        key = reading.canonical_key(name)
        if not word.startswith("--") and not equals:
            problems.append(Problem(f'"{word}" is not an option', where=where, fix="write key=value or --key value"))
        elif equals:
            give(key, value)
        elif key.startswith("no_") and key not in OPTIONS and OPTIONS.get(key[3:]) is not None:
            give(key[3:], False)
        elif rest and _is_value(rest[0], OPTIONS.get(FORMER.get(key, key))):
            give(key, rest.pop(0))
        elif key in OPTIONS and OPTIONS[key].kind != "bool":
            problems.append(Problem(f"{word} needs a value", where=where, keys=(key,), fix=OPTIONS[key].help))
        else:
            give(key, True)
    return values, problems


def _twice(key: str, first: Any, second: Any, where: str) -> Problem:
    """The finding about a key that stands twice among the words."""
    equal = naming.equal(key, first, second) if key in OPTIONS else str(first) == str(second)
    if equal:
        message = f"{key} is given twice with equal values"
        return Problem(message, severity="notice", where=where, fix="keep one", keys=(key,))
    message = f"{key} is given twice with different values: {schema.shown(first)} and {schema.shown(second)}"
    return Problem(message, where=where, fix="keep one", keys=(key,))


def _is_value(word: str, option: Option | None) -> bool:
    """Whether the word behind --key belongs to it, and is not an option of its own."""
    if word.startswith("--"):
        return False
    if option is not None and option.kind == "bool":
        return word.strip().lower() in schema.TRUE | schema.FALSE
    return reading.canonical_key(word.partition("=")[0]) not in OPTIONS or "=" not in word


def extra_args(text: str, name: str, where: str) -> tuple[dict[str, Any], list[Problem]]:
    """The options in the value of variable `name`, which is split like a shell line.

    A backslash at its end joins a line to the next, and a line that starts with # is a comment.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    try:
        words = shlex.split("\n".join(lines).replace("\\\n", " ").removesuffix("\\"))
    except ValueError as error:
        return {}, [Problem(f"{name}: {error}", where=where, fix="close the quotes")]
    return command_line(words, where)
