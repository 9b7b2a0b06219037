"""Read JSON that people wrote: every key keeps its place. Comments and trailing commas are accepted with a warning.

document = read(Path("config.json"))
document.value            plain Python, or None if it could not be read
document.where("seed")    "config.json:7:3", for messages
document.problems         warnings, and the error if there is one
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simpletuner.errors import Problem, Severity

WORD = re.compile(r"[^\s,\[\]{}:\"/#]+")
STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
LITERALS = {"true": True, "false": False, "null": None}
MAX_DEPTH = 100  # deeper nesting is a mistake, and Python's own stack is not endless


def canonical_key(key: str) -> str:
    """--learning-rate, learning-rate and learning_rate are one key."""
    return key.lstrip("-").replace("-", "_")


@dataclass
class Document:
    """What was read, with the place of every key. A path is a tuple of keys (written or canonical) and list indexes."""

    name: str
    value: Any = None
    problems: list[Problem] = field(default_factory=list)
    places: dict[tuple[str | int, ...], tuple[int, int]] = field(default_factory=dict)  # line, column, from 1
    names: bool = False  # keys are people's own words: my-cat and my_cat are two

    def where(self, *path: str | int) -> str:
        """file:line:column of a key or list item; of the nearest known parent if it is not there."""
        key = path if self.names else tuple(canonical_key(p) if isinstance(p, str) else p for p in path)
        while key and key not in self.places:
            key = key[:-1]
        line, column = self.places.get(key, (1, 1))
        return f"{self.name}:{line}:{column}"

    @property
    def failed(self) -> bool:
        return any(p.severity == "error" for p in self.problems)


class _SyntaxError(Exception):
    def __init__(self, message: str, index: int):
        self.message, self.index = message, index


class _Reader:
    def __init__(self, text: str, document: Document, names: bool):
        self.text, self.document, self.index, self.names = text, document, 0, names
        self.lines = [0] + [m.end() for m in re.finditer("\n", text)]

    def place(self, index: int) -> tuple[int, int]:
        import bisect

        line = bisect.bisect_right(self.lines, index)
        return line, index - self.lines[line - 1] + 1

    def warn(self, message: str, index: int) -> None:
        line, column = self.place(index)
        self.document.problems.append(
            Problem(message, severity="warning", where=f"{self.document.name}:{line}:{column}")
        )

    def skip(self) -> None:
        """Moves past white space and comments; one warning per comment."""
        text, end = self.text, len(self.text)
        while self.index < end:
            start = self.index
            if text[start].isspace():
                self.index += 1
            elif text.startswith("/*", start):
                close = text.find("*/", start)
                if close < 0:
                    raise _SyntaxError("a comment is not closed", start)
                self.warn("comment", start)
                self.index = close + 2
            elif text.startswith("//", start) or text[start] == "#":
                self.warn("comment", start)
                newline = text.find("\n", start)
                self.index = end if newline < 0 else newline
            else:
                return

    def peek(self) -> str:
        self.skip()
        return self.text[self.index] if self.index < len(self.text) else ""

    def expect(self, char: str, context: str) -> None:
        found = self.peek()
        if found != char:
            raise _SyntaxError(
                f"expected {char!r} {context}, found {found!r}"
                if found
                else f"the file ends, but {char!r} is missing {context}",
                self.index,
            )
        self.index += 1

    def value(self, path: tuple[str | int, ...]) -> Any:
        char = self.peek()
        self.document.places.setdefault(path, self.place(self.index))
        if len(path) > MAX_DEPTH:
            raise _SyntaxError("too deeply nested", self.index)
        if char == "{":
            return self.object(path)
        if char == "[":
            return self.array(path)
        if char == '"':
            return self.string()
        return self.word()

    def string(self) -> str:
        match = STRING.match(self.text, self.index)
        if not match:
            raise _SyntaxError("a text is not closed, or holds a raw line break or control character", self.index)
        try:
            value = json.loads(match[0])
        except ValueError as error:
            raise _SyntaxError(f"bad escape in a text ({error})", self.index) from None
        self.index = match.end()
        return value

    def word(self) -> Any:
        match = WORD.match(self.text, self.index)
        if not match:
            raise _SyntaxError(
                f"expected a value, found {self.text[self.index : self.index + 1]!r}"
                if self.index < len(self.text)
                else "the file ends where a value should be",
                self.index,
            )
        word = match[0]
        if word in LITERALS:
            self.index = match.end()
            return LITERALS[word]
        try:
            if word.lstrip("-").lower() in ("nan", "infinity"):
                raise ValueError
            value = json.loads(word)
        except ValueError:
            raise _SyntaxError(f"{word[:40]!r} is not a value; texts stand in double quotes", self.index) from None
        self.index = match.end()
        return value

    def object(self, path: tuple[str | int, ...]) -> dict[str, Any]:
        self.index += 1
        found: dict[str, Any] = {}
        seen: dict[str, str] = {}
        while self.peek() != "}":
            if self.peek() != '"':
                raise _SyntaxError(f"expected a key in double quotes or '}}', found {self.peek()!r}", self.index)
            start = self.index
            key = self.string()
            name = key if self.names else canonical_key(key)
            inner = (*path, name)
            first = self.document.places.get(inner)
            self.document.places[inner] = self.place(start)
            self.expect(":", f"after the key {key!r}")
            value = self.value(inner)
            if name in seen:
                self._twice(key, found[seen[name]] == value, start, first)
            seen[name] = key
            found[key] = value
            self._separator("}", f"after the value of {key!r}")
        self.index += 1
        return found

    def _twice(self, key: str, equal: bool, index: int, first: tuple[int, int] | None) -> None:
        line, column = self.place(index)
        also = f" (first at {first[0]}:{first[1]})" if first else ""
        severity: Severity = "notice" if equal else "error"
        end = "with equal values" if equal else "with different values"
        self.document.problems.append(
            Problem(
                f'"{key}" is given twice {end}{also}',
                severity=severity,
                where=f"{self.document.name}:{line}:{column}",
                fix="keep one",
                keys=(canonical_key(key),),
            )
        )

    def array(self, path: tuple[str | int, ...]) -> list[Any]:
        self.index += 1
        found: list[Any] = []
        while self.peek() != "]":
            found.append(self.value((*path, len(found))))
            self._separator("]", "between the items of a list")
        self.index += 1
        return found

    def _separator(self, close: str, context: str) -> None:
        if self.peek() == ",":
            comma = self.index
            self.index += 1
            if self.peek() == close:
                self.warn("trailing comma", comma)
        elif self.peek() != close:
            self.expect(",", context)


def parse_text(text: str, name: str, names: bool = False) -> Document:
    """A Document from text in memory; `name` is for messages. `names`: keys are people's own words, not options."""
    document = Document(name, names=names)
    if text.startswith("\ufeff"):
        document.problems.append(Problem("byte-order mark", severity="warning", where=f"{name}:1:1"))
        text = text[1:]
    reader = _Reader(text, document, names)
    try:
        document.value = reader.value(())
        if reader.peek():
            raise _SyntaxError("text after the end of the value", reader.index)
    except _SyntaxError as error:
        line, column = reader.place(min(error.index, len(text)))
        shown = text.split("\n")[line - 1].rstrip("\r") if text else ""
        start = max(0, column - 60)  # a window, so that a one-line file of 1 MB does not fill the screen
        details = (shown[start : start + 100], " " * (column - 1 - start) + "^")
        document.value = None
        document.problems.append(
            Problem(f"not valid JSON: {error.message}", where=f"{name}:{line}:{column}", details=details)
        )
    return document


def read(path: Path, names: bool = False) -> Document:
    """The document at `path`. A file that is missing or not UTF-8 is among its problems, never an exception."""
    name = str(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        return Document(name, problems=[Problem(f"cannot be read: {error.strerror}", where=name)])
    try:
        return parse_text(data.decode("utf-8"), name, names)
    except UnicodeDecodeError as error:
        return Document(
            name, problems=[Problem(f"not UTF-8 (byte {error.start})", where=name, fix="save the file as UTF-8")]
        )
