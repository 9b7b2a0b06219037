"""Pictures side by side under labels: base model beside a step, and contact sheets of a whole validation."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

BAND = 32  # pixels, of a label
SMALLEST_CELL = 192  # a 64 px picture would be too small to judge, and its label would not fit
LARGEST_CELL = 512  # on contact sheets
LARGEST_EDGE = 4096  # of a contact sheet: many viewers stop there
GAP = 4
PAPER, INK, QUIET, EMPTY = (24, 24, 27), (244, 244, 245), (161, 161, 170), (39, 39, 42)


class Row(NamedTuple):
    """One line of a contact sheet: its label and a picture (from `fit`), or None, for each column."""

    label: str
    cells: Sequence[Image.Image | None]


@functools.lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(17)


@functools.lru_cache(maxsize=1024)
def readable(text: str) -> str | None:
    """`text` with the letters that the bundled font has, accents dropped; None if it has no shape for some of them."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    font = _font()
    unknown = bytes(font.getmask("\U0010fffe"))
    known = all(c.isspace() or bytes(font.getmask(c)) != unknown for c in plain)
    return plain if known else None


def _label(
    draw: ImageDraw.ImageDraw,
    text: str,
    left: int,
    top: int,
    width: int,
    *,
    centred: bool,
    ink: tuple[int, int, int] = INK,
) -> None:
    """Writes `text` into a band, shortened with an ellipsis where it does not fit."""
    room, font = width - 16, _font()
    shown = text
    while shown and draw.textlength(shown, font=font) > room:
        shown = shown[:-2].rstrip() + "…" if len(shown) > 2 else ""
    x, anchor = (left + width // 2, "mm") if centred else (left + 8, "lm")
    draw.text((x, top + BAND // 2), shown, fill=ink, font=font, anchor=anchor)


def _to_height(image: Image.Image, height: int) -> Image.Image:
    if image.height == height:
        return image
    resample = Image.Resampling.NEAREST if height > image.height else Image.Resampling.LANCZOS
    return image.resize((max(1, round(image.width * height / image.height)), height), resample)


def beside(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """The pictures in a row, each under its label, all as tall as the tallest; tiny ones are enlarged."""
    height = max(image.height for _, image in pictures)
    narrowest = min(image.width * height / image.height for _, image in pictures)
    height *= max(1, -(-SMALLEST_CELL // max(1, int(min(narrowest, height)))))  # a whole factor keeps the pixels square
    cells = [(label, _to_height(image.convert("RGB"), height)) for label, image in pictures]
    width = sum(cell.width for _, cell in cells) + GAP * (len(cells) - 1)
    sheet = Image.new("RGB", (width, BAND + height), PAPER)
    draw, left = ImageDraw.Draw(sheet), 0
    for label, cell in cells:
        _label(draw, label, left, 0, cell.width, centred=True)
        sheet.paste(cell, (left, BAND))
        left += cell.width + GAP
    return sheet


def fit(image: Image.Image) -> Image.Image:
    """As a cell of a contact sheet: long edge at most 512, tiny pictures enlarged by a whole factor."""
    edge = max(image.size)
    if edge > LARGEST_CELL:
        return _to_height(image.convert("RGB"), max(1, round(image.height * LARGEST_CELL / edge)))
    return _to_height(image.convert("RGB"), image.height * max(1, -(-SMALLEST_CELL // edge)))


def contact_sheets(columns: Sequence[str], rows: Sequence[Row]) -> list[Image.Image]:
    """Pages with a picture for each row and column, column names on top. A column without any picture is left out."""
    used = [i for i in range(len(columns)) if any(row.cells[i] for row in rows)]
    if not used:
        return []
    fitted = [(row.label, [row.cells[i] for i in used]) for row in rows]
    widths = [max([SMALLEST_CELL] + [cells[c].width for _, cells in fitted if cells[c]]) for c in range(len(used))]  # type: ignore[union-attr]
    heights = [BAND + max(cell.height for cell in cells if cell) if any(cells) else 0 for _, cells in fitted]
    pages, start = [], 0
    while start < len(fitted):
        stop, height = start, BAND
        while stop < len(fitted) and (stop == start or height + heights[stop] + GAP <= LARGEST_EDGE):
            height += heights[stop] + GAP
            stop += 1
        pages.append(_page([columns[i] for i in used], widths, fitted[start:stop], heights[start:stop]))
        start = stop
    return pages


def _page(
    columns: Sequence[str], widths: Sequence[int], rows: Sequence[tuple[str, list]], heights: Sequence[int]
) -> Image.Image:
    total = sum(widths) + GAP * (len(widths) - 1)
    sheet = Image.new("RGB", (total, BAND + sum(heights) + GAP * len(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    lefts = [sum(widths[:i]) + GAP * i for i in range(len(widths))]
    for name, left, width in zip(columns, lefts, widths, strict=True):
        _label(draw, name, left, 0, width, centred=True)
    top = BAND
    for (label, cells), height in zip(rows, heights, strict=True):
        if height:
            _label(draw, label, 0, top, total, centred=False, ink=QUIET)
        for cell, left, width in zip(cells, lefts, widths, strict=True):
            if cell:
                sheet.paste(cell, (left + (width - cell.width) // 2, top + BAND))
            elif height:
                draw.rectangle((left, top + BAND, left + width - 1, top + height - 1), fill=EMPTY)
        top += height + GAP
    return sheet
