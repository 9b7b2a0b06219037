"""Change a JSON file that people wrote, and nothing else in it: order, comments, prefixes and white space stay.

text = read(path)
write(path, edit(text, {"learning_rate": 1e-4}, remove=["seed"]))
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from simpletuner import newfile, reading
from simpletuner.errors import ConfigError
from simpletuner.reading import Document, Member, canonical_key

BYTE_ORDER_MARK = "\ufeff"
STEP = "  "  # one level of what we write ourselves
WANTED: dict[type, tuple[str, str]] = {  # what a text must hold -> what is said if it does not
    dict: ("expected an object of options", "wrap the options in { }"),
    list: ("expected a list", "wrap it in [ ]"),
}


def read(path: Path) -> str:
    """The text of the file to the byte: line ends and byte-order mark as they are. ConfigError if it is not UTF-8."""
    _, problems = reading.read_text(path)
    if any(problem.severity == "error" for problem in problems):
        raise ConfigError(problems)
    return path.read_bytes().decode("utf-8")


def edit(text: str, changes: Mapping[str, Any], remove: Iterable[str] = ()) -> str:
    """The text of an object with other values for some keys, in any spelling of theirs.

    changes: of a known key only the value's span is replaced, and only if the value differs; a new key goes before the
    closing brace. remove: keys to leave out; one that is not there is none to complain about. ConfigError if the text
    is no JSON object.
    """
    mark, text = _unmarked(text)
    document = _parse(text)
    for key in remove:
        while members := _members(document, key):
            text = _without(text, document, members[-1])
            document = _parse(text)
    for key, value in changes.items():
        members = _members(document, key)
        for member in reversed(members):
            text = _with_value(text, document, member, value)
        if not members:
            text = _with_member(text, document, key, value)
        document = _parse(text)
    return mark + text


def write(path: Path, text: str, backup: bool = True) -> None:
    """Puts `text` at `path` in one step; what was there before is kept as <name>.bak. Does nothing if it is the same.

    OSError as from the file system; then the file is as it was.
    """
    path = Path(os.path.realpath(path))  # a link goes on pointing to the file
    data = text.encode("utf-8")
    before = path.read_bytes() if path.exists() else None
    if before == data:
        return
    if before is not None and backup:
        newfile.replace(path.with_name(path.name + ".bak"), before, like=path)
    newfile.replace(path, data, like=path)


def _parse(text: str, want: type = dict) -> Document:
    """An object, or a list if that is wanted."""
    document = reading.parse_text(text, "the file")
    if document.failed and document.value is None:
        raise ConfigError(document.problems)
    if not isinstance(document.value, want):
        message, fix = WANTED[want]
        raise ConfigError(message, where=document.where(), fix=fix)
    return document


def _members(document: Document, key: str) -> list[Member]:
    """The members with that key: more than one if it stands there twice."""
    return [member for member in document.members if canonical_key(member.key) == canonical_key(key)]


def _with_value(text: str, document: Document, member: Member, value: Any) -> str:
    begin, end = member.value
    now = reading.parse_text(text[begin:end], "").value
    if _same(now, value):
        return text
    return text[:begin] + _written(text, member.start, value) + text[end:]


def _same(one: Any, other: Any) -> bool:
    """Whether both are one JSON value: true is not 1, and "1" is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _written(text: str, start: int, value: Any) -> str:
    """The value as JSON. An object takes several lines, and so does a list of them, indented below the key's line."""
    deep = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value))
    if not value or not deep:
        return json.dumps(value, ensure_ascii=False)
    inner = json.dumps(value, ensure_ascii=False, indent=STEP)
    return inner.replace("\n", _line_end(text) + _indent(text, start))


def _with_member(text: str, document: Document, key: str, value: Any) -> str:
    """With a new key before the closing brace, in the manner of the others."""
    opening, closing = document.braces
    end = len(text[:closing].rstrip())  # of what stands before the brace, comments too
    line_end = _line_end(text)
    prefixed = [member.key.startswith("--") for member in document.members if member.key[:1] not in "$_"]
    in_manner = bool(prefixed) and all(prefixed) and key[:1] not in "$_"
    name = json.dumps(("--" if in_manner else "") + key, ensure_ascii=False)
    if not document.members:
        value_text = _written(text, opening, value).replace(line_end, line_end + STEP)
        rest = text[end:] if "\n" in text[end:closing] else line_end + text[closing:]
        return f"{text[:end]}{line_end}{STEP}{name}: {value_text}{rest}"
    last = document.members[-1]
    gap = line_end + (_indent(text, last.start) or STEP) if "\n" in text[opening:closing] else " "
    comma = "," if last.comma is None else ""
    before = text[: last.value[1]] + comma + text[last.value[1] : end]
    return f"{before}{gap}{name}: {_written(text, last.start, value)}{text[end:]}"


def _without(text: str, document: Document, member: Member) -> str:
    """Without the member and one comma; comments stay, and a line that is left empty goes."""
    number = document.members.index(member)
    cuts = [(member.start, member.value[1])]
    begin = member.start
    if member.comma is not None:
        cuts.append((member.comma, member.comma + 1))
    elif number and (comma := document.members[number - 1].comma) is not None:
        cuts.append((comma, comma + 1))  # the member before is the last one now
        begin -= 1
    for start, end in sorted(cuts, reverse=True):
        text = text[:start] + text[end:]
    line, newline = text.rfind("\n", 0, begin) + 1, text.find("\n", begin)
    if newline >= 0 and not text[line:newline].strip():
        return text[:line] + text[newline + 1 :]
    return text[:begin] + text[begin:].lstrip(" \t")


def _indent(text: str, index: int) -> str:
    """The white space at the beginning of the line in which `index` lies, if the line begins there."""
    line = text.rfind("\n", 0, index) + 1
    start = text[line:index]
    return start[: len(start) - len(start.lstrip())]


def _line_end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def edit_item(text: str, number: int, changes: Mapping[str, Any], remove: Iterable[str] = ()) -> str:
    """As `edit`, for the object that is item `number` of the list in `text`. ConfigError as there."""
    mark, text = _unmarked(text)
    begin, end = _parse(text, list).members[number].value
    return mark + text[:begin] + edit(text[begin:end], changes, remove) + text[end:]


def append(text: str, value: Any) -> str:
    """The text of a list with one more item, on lines of its own. ConfigError if the text is no JSON list."""
    mark, text = _unmarked(text)
    return mark + _appended(text, _parse(text, list), value)


def _appended(text: str, document: Document, value: Any) -> str:
    line_end = _line_end(text)
    item = line_end + STEP + json.dumps(value, ensure_ascii=False, indent=STEP).replace("\n", line_end + STEP)
    if not document.members:
        opening, closing = document.braces
        return f"{text[: opening + 1]}{item}{line_end}{text[closing:]}"
    last = document.members[-1]
    if last.comma is not None:  # a trailing comma separates now
        return text[: last.comma + 1] + item + text[last.comma + 1 :]
    return text[: last.value[1]] + "," + item + text[last.value[1] :]


def _unmarked(text: str) -> tuple[str, str]:
    """(byte-order mark or nothing, the rest)."""
    mark = BYTE_ORDER_MARK if text.startswith(BYTE_ORDER_MARK) else ""
    return mark, text.removeprefix(BYTE_ORDER_MARK)
