"""Read config.toml, with the place of every key, as `reading` reads JSON."""

from __future__ import annotations

import datetime
import re
import sys
from pathlib import Path
from typing import Any

from simpletuner import reading
from simpletuner.errors import Problem
from simpletuner.reading import Document, canonical_key

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KEY = re.compile(r"""\s*("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*""")
GAP = re.compile(r"(?:\s|#[^\n]*)*")
# What a value is made of, as far as its end must be found: texts, comments, brackets, line ends.
PART = re.compile(
    r'"""(?:[^\\]|\\.)*?"""+|\'\'\'.*?\'\'\'+|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*|[\[{]|[\]}]|\n|[^"\'#\[\]{}\n]+',
    re.DOTALL,
)
AT = re.compile(r" ?\(at (?:line (\d+), column (\d+)|end of document)\)$")


def read(path: Path) -> Document:
    """The document at `path`. What is wrong with the file is among its problems, never an exception."""
    text, problems = reading.read_text(path)
    if any(problem.severity == "error" for problem in problems):
        return Document(str(path), problems=problems)
    document = parse_text(text, str(path))
    document.problems[:0] = problems
    return document


def parse_text(text: str, name: str) -> Document:
    """A Document from text in memory; `name` is for messages."""
    document = Document(name)
    try:
        value = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        document.problems.append(_syntax_error(text.replace("\r\n", "\n"), name, error))
        return document
    document.places[()] = (1, 1)
    places = _Places(text.replace("\r\n", "\n"), document)
    places.note()
    document.value = _plain(value)
    seen: dict[str, str] = {}
    for key, place in places.outermost.items():  # --seed and seed are two keys for TOML, and one for us
        first = seen.setdefault(canonical_key(key), key)
        if first != key:
            document.given_twice(key, value[first] == value[key], place, places.outermost[first])
    return document


def _syntax_error(text: str, name: str, error: Exception) -> Problem:
    message = "too deeply nested" if isinstance(error, RecursionError) else str(error)
    where = AT.search(message)
    if not where:
        return Problem(f"not valid TOML: {message}", where=name)
    lines = text.split("\n")
    line, column = (int(where[1]), int(where[2])) if where[1] else (len(lines), len(lines[-1]) + 1)
    details = reading.pointer(text, line, column)
    if (key := KEY.match(lines[line - 1])) and message.startswith("Cannot overwrite"):
        before = Document(name)
        _Places("\n".join(lines[: line - 1]), before).note()  # what stands above was valid
        if first := before.places.get((canonical_key(key[1]),)):
            message = f'"{key[1]}" is given twice (first at {first[0]}:{first[1]})'
            return Problem(message, where=f"{name}:{line}:{key.start(1) + 1}", details=details, fix="keep one")
    return Problem(f"not valid TOML: {message[: where.start()]}", where=f"{name}:{line}:{column}", details=details)


def _plain(value: Any) -> Any:
    """Dates and times, which JSON has not, as their text."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return value


class _Places:
    """Finds where each key of a valid text stands; keys within inline tables count as their table's."""

    def __init__(self, text: str, document: Document):
        self.text, self.document, self.index = text, document, 0
        self.lines = reading.Lines(text)
        self.counts: dict[tuple[str | int, ...], int] = {}  # how many tables of each list were seen
        self.outermost: dict[str, tuple[int, int]] = {}  # by keys as they are written

    def note(self) -> None:
        table: tuple[str | int, ...] = ()
        while self._past_gap():
            if self.text.startswith("[", self.index):
                table = self._header()
            else:
                self._key(table)
                self._past_value()

    def _past_gap(self) -> bool:
        match = GAP.match(self.text, self.index)
        self.index = match.end() if match else self.index
        return self.index < len(self.text)

    def _header(self) -> tuple[str | int, ...]:
        many = self.text.startswith("[[", self.index)
        self.index += 2 if many else 1
        path = self._key(())
        if many:
            number = self.counts[path] = self.counts.get(path, -1) + 1
            path = (*path, number)
        newline = self.text.find("\n", self.index)  # behind the brackets nothing but a comment can stand
        self.index = len(self.text) if newline < 0 else newline
        return path

    def _key(self, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
        """The path with the key that stands here, whose parts are separated by dots."""
        while match := KEY.match(self.text, self.index):
            written = match[1]
            key = written if written[0] not in "\"'" else next(iter(tomllib.loads(f"{written} = 0")))
            path = (*path, canonical_key(key))
            place = self.lines.place(match.start(1))
            self.document.places.setdefault(path, place)
            if len(path) == 1:
                self.outermost.setdefault(key, place)
            last = self.text[match.end() : match.end() + 1] != "."
            self.index = match.end() + (0 if last else 1)
            if last:
                break
        return path

    def _past_value(self) -> None:
        depth = 0
        while match := PART.match(self.text, self.index):
            self.index = match.end()
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
            if match[0] == "\n" and depth == 0:
                return
        self.index = len(self.text)
