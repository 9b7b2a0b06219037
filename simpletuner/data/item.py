"""One object of the dataset file on its way to options: canonical keys, their places, and what is wrong with them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from simpletuner import reading, schema
from simpletuner.data.options import KEY_ALIASES, VALUE_ALIASES, ImageEntry
from simpletuner.errors import Problem
from simpletuner.registry import did_you_mean
from simpletuner.schema import Raw

PLACEHOLDER = re.compile(r"\{(model_family|family|output_dir|id|env:(\w+))\}")
Block = TypeVar("Block", bound=schema.Group)


@dataclass(frozen=True)
class Item:
    """One object of the file on its way to a Group: canonical keys, places, and where its problems go."""

    index: int
    raw: dict[str, Raw]
    where: str
    problems: list[Problem]
    document: reading.Document | None = None  # None if it is not in the file

    def text(self, key: str) -> str:
        value = self.raw[key].value if key in self.raw else ""
        return value if isinstance(value, str) else ""

    @property
    def name(self) -> str:
        return f"dataset {self.text('id') or f'number {self.index + 1}'}"

    def say(self, message: str, key: str = "", fix: str = "", severity: Any = "error") -> None:
        where = self.raw[key].origin if key in self.raw else self.where
        text = f"{self.name}: {message}"
        self.problems.append(Problem(text, severity=severity, where=where, fix=fix, keys=(key,) if key else ()))

    def pass_on(self, key: str, found: Iterable[Problem]) -> None:
        """Reports what was found in the value of a key."""
        for p in found:
            self.problems.append(
                replace(p, message=f"{self.name}: {key}: {p.message}", where=p.where or self.where, keys=(key,))
            )


def take(document: reading.Document, index: int, names: Mapping[str, str], problems: list[Problem]) -> Item | None:
    """The object at `index` with canonical keys, aliases and placeholders resolved."""
    value, where = document.value[index], document.where(index)
    if not isinstance(value, dict):
        problems.append(
            Problem(f"dataset number {index + 1}: expected an object", where=where, fix='write { "id": ... }')
        )
        return None
    raw: dict[str, Raw] = {}
    item = Item(index, raw, where, problems, document)
    for written, content in value.items():
        key = reading.canonical_key(written)
        name = KEY_ALIASES.get(key, key)
        if isinstance(content, str):
            content = VALUE_ALIASES.get((name, content.strip().lower()), content)
        raw[name] = Raw(content, document.where(index, key))
    names = {**names, "id": item.text("id")}
    for key, found in raw.items():
        if isinstance(found.value, str):
            raw[key] = Raw(replaced(found.value, names, item, key), found.origin)
        elif isinstance(found.value, dict):
            inner = {k: replaced(v, names, item, key) if isinstance(v, str) else v for k, v in found.value.items()}
            raw[key] = Raw(inner, found.origin)
    return item


def replaced(text: str, names: Mapping[str, str], item: Item, key: str) -> str:
    def value(match: re.Match[str]) -> str:
        if match[2] is None:
            return names[match[1]]
        if match[2] not in os.environ:
            item.say(f"{key}: the environment variable {match[2]} is not set", key, fix=f"export {match[2]}=...")
        return os.environ.get(match[2], "")

    return PLACEHOLDER.sub(value, text)


def block(item: Item, entry: ImageEntry, key: str, group: type[Block]) -> Block | None:
    """An object inside the entry as a group; None if it is absent. Its problems are reported."""
    value = getattr(entry, key)
    if value is None or item.document is None:
        return None
    known = schema.options([group])
    raw = {reading.canonical_key(k): Raw(v, item.document.where(item.index, key, k)) for k, v in value.items()}
    for name in raw.keys() - known.keys():
        fix = did_you_mean(name, known) or f"it takes {', '.join(known)}"
        problem = Problem(f'{item.name}: {key}: unknown key "{name}"', where=raw[name].origin, fix=fix, keys=(name,))
        item.problems.append(problem)
    parsed, found = schema.parse([group], raw)
    item.pass_on(key, found)
    block = parsed.get(group.__name__)
    assert block is None or isinstance(block, group)
    return block
