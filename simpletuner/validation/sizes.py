"""Image sizes as people write them: "1024x1024,1280x768", an edge, or megapixels."""

from __future__ import annotations

import math
import re

from simpletuner.errors import Problem
from simpletuner.types import Size

MULTIPLE = 16  # VAE factor 8 x patch 2
SMALLEST_EDGE = 128  # below it a plain number means megapixels
FIX = "write 1024x1024 (width x height), an edge of 128 or more, megapixels below 128, or a comma list of these"


def to_multiple(pixels: float) -> int:
    """The nearest multiple of 16, halves up, never below 16."""
    return max(MULTIPLE, math.floor(pixels / MULTIPLE + 0.5) * MULTIPLE)


def _one(text: str) -> Size | None:
    """The size as written, before rounding to 16; None if it cannot be read."""
    if pair := re.fullmatch(r"(\d{1,6})\s*[xX×]\s*(\d{1,6})", text):
        width, height = int(pair[1]), int(pair[2])
        return Size(height, width) if min(width, height) > 0 else None
    if not re.fullmatch(r"\d{1,6}(\.\d*)?|\.\d+", text):
        return None
    number = float(text)
    if number >= SMALLEST_EDGE:
        return Size(int(number), int(number)) if number.is_integer() else None
    edge = to_multiple(1024 * math.sqrt(number))
    return Size(edge, edge) if number > 0 else None


def parse(text: str, *, key: str = "validation_resolution", where: str = "") -> tuple[tuple[Size, ...], list[Problem]]:
    """All sizes in `text`, each once, in the order written; an unreadable part is an error, a rounded one a notice."""
    found: dict[Size, None] = {}
    problems = []
    parts = [part.strip() for part in str(text).split(",") if part.strip()]
    for part in parts:
        written = _one(part)
        if written is None:
            problems.append(Problem(f'{key}: "{part}" is not a size', where=where, keys=(key,), fix=FIX))
            continue
        size = Size(to_multiple(written.height), to_multiple(written.width))
        if size != written:
            message = f"{key}: {written} is rounded to {size}, a multiple of {MULTIPLE}"
            problems.append(Problem(message, severity="notice", where=where, keys=(key,)))
        found[size] = None
    if not parts:
        problems.append(Problem(f"{key}: no size given", where=where, keys=(key,), fix=FIX))
    return tuple(found), problems


def halved(size: Size) -> Size:
    """Half the edges, for a machine that cannot hold the whole."""
    return Size(*(max(MULTIPLE, edge // 2 // MULTIPLE * MULTIPLE) for edge in size))
