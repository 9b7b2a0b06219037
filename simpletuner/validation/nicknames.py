"""Nicknames of prompts: words of any language, made fit to be part of a file name on every system."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

MAX_BYTES = 80  # leaves room for step, number, size and extension within the 255 of common file systems
FORBIDDEN = re.compile(r'[<>:"/\\|?*]')
DEVICES = {"con", "prn", "aux", "nul"} | {f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)}


def _cut(text: str, limit: int) -> str:
    """At most `limit` UTF-8 bytes, never half a character."""
    return text.encode()[:limit].decode(errors="ignore")


def for_file(nickname: str) -> str:
    """`nickname` as a safe part of a file name; other scripts than Latin stay as they are."""
    text = unicodedata.normalize("NFC", nickname).encode(errors="replace").decode()  # a lone surrogate has no bytes
    text = "".join(
        "_" if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char for char in FORBIDDEN.sub("_", text)
    )
    text = _cut(text, MAX_BYTES)
    if text[-1:] in (".", " "):  # Windows drops these at the end of a name
        text = text[:-1] + "_"
    if text.split(".")[0].lower() in DEVICES:
        text = _cut(text, MAX_BYTES - 1) + "_"
    return text


def unique(name: str, taken: Iterable[str]) -> str:
    """`name`, or `name-2`, `name-3` if it is taken; upper and lower case are one, as on Windows and macOS."""
    used = {other.casefold() for other in taken}
    candidate, number = name, 1
    while candidate.casefold() in used:
        number += 1
        suffix = f"-{number}"
        candidate = _cut(name, MAX_BYTES - len(suffix)) + suffix
    return candidate
