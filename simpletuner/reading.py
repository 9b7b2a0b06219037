"""Read JSON that people wrote: every key keeps its place. Comments and trailing commas are accepted with a warning.

document = read(Path("config.json"))
document.value            plain Python, or None if it could not be read
document.where("seed")    "config.json:7:3", for messages
document.problems         warnings, and the error if there is one
"""

from __future__ import annotations

import bisect
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simpletuner.errors import Problem, Severity

WORD = re.compile(r"[^\s,\[\]{}:\"/#]+")
STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
SECRET = re.compile(r"""((?:secret|password|access_key)\w*["']?\s*[:=]\s*["']?)([^\s"',}\]]+)""", re.IGNORECASE)
LITERALS = {"true": True, "false": False, "null": None}
COMMENT = "comment (JSON has none; it is read all the same)"
MAX_DEPTH = 100  # deeper nesting is a mistake, and Python's own stack is not endless


def canonical_key(key: str) -> str:
    """--learning-rate, learning-rate and learning_rate are one key."""
    return key.lstrip("-").replace("-", "_")


@dataclass(frozen=True)
class Member:
    """One key of the outermost object, or one item of the outermost list, which has no key, as offsets into the text.

    `comma` is None where none follows.
    """

    key: str
    start: int
    value: tuple[int, int]
    comma: int | None


@dataclass
class Document:
    """What was read, with the place of every key. A path is a tuple of keys (written or canonical) and list indexes."""

    name: str
    value: Any = None
    problems: list[Problem] = field(default_factory=list)
    places: dict[tuple[str | int, ...], tuple[int, int]] = field(default_factory=dict)  # line, column, from 1
    names: bool = False  # keys are people's own words: my-cat and my_cat are two
    members: list[Member] = field(default_factory=list)  # of the outermost object or list, for those who edit its text
    braces: tuple[int, int] = (0, 0)  # where it opens and closes

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

    def given_twice(self, key: str, equal: bool, place: tuple[int, int], first: tuple[int, int] | None) -> None:
        """Notes that one key stands twice in one object: an error, unless both values are equal."""
        also = f" (first at {first[0]}:{first[1]})" if first else ""
        end = "with equal values" if equal else "with different values"
        severity: Severity = "notice" if equal else "error"
        where = f"{self.name}:{place[0]}:{place[1]}"
        message, keys = f'"{key}" is given twice {end}{also}', (canonical_key(key),)
        self.problems.append(Problem(message, severity=severity, where=where, fix="keep one", keys=keys))


def veiled(line: str) -> str:
    """The line with a * for each letter of a value whose key says that it is secret: messages end up in logs."""
    return SECRET.sub(lambda match: match[1] + "*" * len(match[2]), line)


def pointer(text: str, line: int, column: int) -> tuple[str, ...]:
    """The line of `text` and a caret below the column; of a long line a window, of a blank one nothing."""
    shown = veiled(text.split("\n")[line - 1].rstrip("\r")) if text else ""
    if not shown.strip():
        return ()
    start = max(0, column - 60)  # so that a one-line file of 1 MB does not fill the screen
    return shown[start : start + 100], " " * (column - 1 - start) + "^"


def read_text(path: Path) -> tuple[str, list[Problem]]:
    """(text, findings): a file that is missing or not UTF-8 is an error among them; a byte-order mark is cut off."""
    name = str(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        return "", [Problem(f"cannot be read: {error.strerror}", where=name, fix="correct the path")]
    except UnicodeDecodeError as error:
        return "", [Problem(f"not UTF-8 (byte {error.start})", where=name, fix="save the file as UTF-8")]
    except ValueError:  # a path with a null byte
        return "", [Problem("is not a path", where=repr(name)[:60], fix="correct the path")]
    if text.startswith("\ufeff"):
        return text[1:], [Problem("byte-order mark", severity="warning", where=f"{name}:1:1")]
    return text, []


class Lines:
    """Line and column, both from 1, of an offset into `text`."""

    def __init__(self, text: str):
        self.starts = [0] + [m.end() for m in re.finditer("\n", text)]

    def place(self, index: int) -> tuple[int, int]:
        line = bisect.bisect_right(self.starts, index)
        return line, index - self.starts[line - 1] + 1


class _SyntaxError(Exception):
    def __init__(self, message: str, index: int):
        self.message, self.index = message, index


class _Reader:
    def __init__(self, text: str, document: Document, names: bool):
        self.text, self.document, self.index, self.names = text, document, 0, names
        self.place = Lines(text).place

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
                self.warn(COMMENT, start)
                self.index = close + 2
            elif text.startswith("//", start) or text[start] == "#":
                self.warn(COMMENT, start)
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
            value.encode("utf-8")  # \ud800 is half of a character: it can be neither stored nor shown
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
            before = self.text[self.text.rfind("\n", 0, self.index) + 1 : self.index]
            said = veiled(before + word)[len(before) :][:40]
            raise _SyntaxError(f"{said!r} is not a value; texts stand in double quotes", self.index) from None
        self.index = match.end()
        return value

    def object(self, path: tuple[str | int, ...]) -> dict[str, Any]:
        opening = self.index
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
            self.skip()
            begin = self.index
            value = self.value(inner)
            end = self.index
            if name in seen:
                self.document.given_twice(key, found[seen[name]] == value, self.place(start), first)
            seen[name] = key
            found[key] = value
            comma = self._separator("}", f"after the value of {key!r}")
            if not path:
                self.document.members.append(Member(key, start, (begin, end), comma))
        if not path:
            self.document.braces = opening, self.index
        self.index += 1
        return found

    def array(self, path: tuple[str | int, ...]) -> list[Any]:
        opening = self.index
        self.index += 1
        found: list[Any] = []
        while self.peek() != "]":
            begin = self.index
            found.append(self.value((*path, len(found))))
            end = self.index
            comma = self._separator("]", "between the items of a list")
            if not path:
                self.document.members.append(Member("", begin, (begin, end), comma))
        if not path:
            self.document.braces = opening, self.index
        self.index += 1
        return found

    def _separator(self, close: str, context: str) -> int | None:
        """Where the comma is; None before the closing bracket."""
        if self.peek() != ",":
            if self.peek() != close:
                self.expect(",", context)
            return None
        comma = self.index
        self.index += 1
        if self.peek() == close:
            self.warn("trailing comma", comma)
        return comma


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
        details = pointer(text, line, column)
        document.value = None
        where = f"{name}:{line}:{column}"
        document.problems.append(
            Problem(f"not valid JSON: {error.message}", where=where, fix="correct it there", details=details)
        )
    return document


def read(path: Path, names: bool = False) -> Document:
    """The document at `path`. A file that is missing or not UTF-8 is among its problems, never an exception."""
    text, problems = read_text(path)
    if any(problem.severity == "error" for problem in problems):
        return Document(str(path), problems=problems)
    document = parse_text(text, str(path), names)
    document.problems[:0] = problems
    return document
