"""Pictures side by side under labels: base model beside a step, and contact sheets of a whole validation."""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

BAND = 32  # pixels, of a label above one picture or column
LABEL, FIRST_LINE = 50, 29  # of the two lines above a row of a contact sheet, and of the first of them
TEXT, SMALL = 17, 14  # letters
SMALLEST_CELL = 192  # a 64 px picture would be too small to judge, and its label would not fit
LARGEST_CELL = 512  # on contact sheets
LARGEST_EDGE = 4096  # of a contact sheet: many viewers stop there
GAP = 4  # between the pictures of a row
PANEL_GAP = 20  # between rows, and between panels
MARGIN = 16  # around a contact sheet
SHAPE = 1.4  # width / height that a contact sheet comes near to
PAPER, INK, QUIET, EMPTY = (24, 24, 27), (244, 244, 245), (161, 161, 170), (39, 39, 42)


class Row(NamedTuple):
    """One prompt on a contact sheet: what it is, and a picture (from `fit`), or None, for each column."""

    label: str
    note: str  # in smaller letters below
    cells: Sequence[Image.Image | None]


@functools.lru_cache(maxsize=2)
def _font(size: int = TEXT) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


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
    size: int = TEXT,
    height: int = BAND,
    inset: int = 8,
) -> None:
    """Writes `text` into a band, shortened with an ellipsis where it does not fit."""
    room, font = width - 2 * inset, _font(size)
    shown = text
    while shown and draw.textlength(shown, font=font) > room:
        shown = shown[:-2].rstrip() + "…" if len(shown) > 2 else ""
    x, anchor = (left + width // 2, "mm") if centred else (left + inset, "lm")
    draw.text((x, top + height // 2), shown, fill=ink, font=font, anchor=anchor)


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
    """Pages with a picture for each row and column, column names on top. A column without any picture is left out.

    Many rows stand in several panels beside each other, in reading order, so that a page is not much taller than wide.
    """
    used = [i for i in range(len(columns)) if any(row.cells[i] for row in rows)]
    if not used:
        return []
    rows = [row._replace(cells=[row.cells[i] for i in used]) for row in rows if any(row.cells)]
    panel = Panel([columns[i] for i in used], [_widest(rows, column) for column in range(len(used))])
    across = _across(panel, rows)
    lines = [rows[i : i + across] for i in range(0, len(rows), across)]
    pages, start = [], 0
    while start < len(lines):
        stop = start + 1
        while stop < len(lines) and _height(lines[start : stop + 1]) <= LARGEST_EDGE:
            stop += 1
        pages.append(_page(panel, across, lines[start:stop]))
        start = stop
    return pages


class Panel(NamedTuple):
    """The columns of one row: their names and widths."""

    names: Sequence[str]
    widths: Sequence[int]

    @property
    def width(self) -> int:
        return sum(self.widths) + GAP * (len(self.widths) - 1)


def _widest(rows: Sequence[Row], column: int) -> int:
    return max([SMALLEST_CELL, *(cell.width for row in rows if (cell := row.cells[column]))])


def _across(panel: Panel, rows: Sequence[Row]) -> int:
    """How many panels stand beside each other: what comes nearest to the shape of a screen and fits a page."""

    def size(across: int) -> tuple[int, int]:
        lines = [rows[i : i + across] for i in range(0, len(rows), across)]
        return _width(panel, across), _height(lines)

    fitting = [n for n in range(1, len(rows) + 1) if max(size(n)) <= LARGEST_EDGE]
    if not fitting:  # several pages, each as full as it can be
        return max([1, *(n for n in range(1, len(rows) + 1) if _width(panel, n) <= LARGEST_EDGE)])
    return min(fitting, key=lambda n: abs(math.log(size(n)[0] / size(n)[1] / SHAPE)))


def _width(panel: Panel, across: int) -> int:
    return 2 * MARGIN + across * panel.width + (across - 1) * PANEL_GAP


def _height(lines: Sequence[Sequence[Row]]) -> int:
    return MARGIN + BAND + sum(_tallest(line) + PANEL_GAP for line in lines) - PANEL_GAP + MARGIN


def _tallest(line: Sequence[Row]) -> int:
    return LABEL + max(cell.height for row in line for cell in row.cells if cell)


def _page(panel: Panel, across: int, lines: Sequence[Sequence[Row]]) -> Image.Image:
    sheet = Image.new("RGB", (_width(panel, min(across, len(lines[0]))), _height(lines)), PAPER)
    draw = ImageDraw.Draw(sheet)
    lefts = [MARGIN + (panel.width + PANEL_GAP) * i for i in range(across)]
    for left, _ in zip(lefts, lines[0], strict=False):
        for name, width, shift in zip(panel.names, panel.widths, _shifts(panel), strict=True):
            _label(draw, name, left + shift, MARGIN, width, centred=True, ink=QUIET)
    top = MARGIN + BAND
    for line in lines:
        for left, row in zip(lefts, line, strict=False):
            _draw_row(sheet, draw, panel, row, left, top, top + _tallest(line))
        top += _tallest(line) + PANEL_GAP
    return sheet


def _draw_row(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, row: Row, left: int, top: int, bottom: int
) -> None:
    height = FIRST_LINE if row.note else LABEL
    _label(draw, row.label, left, top, panel.width, centred=False, inset=0, height=height)
    _label(
        draw, row.note, left, top + FIRST_LINE - 3, panel.width,
        centred=False, inset=0, size=SMALL, height=LABEL - FIRST_LINE, ink=QUIET,
    )  # fmt: skip
    for cell, width, shift in zip(row.cells, panel.widths, _shifts(panel), strict=True):
        if cell:
            sheet.paste(cell, (left + shift + (width - cell.width) // 2, top + LABEL))
        else:
            draw.rectangle((left + shift, top + LABEL, left + shift + width - 1, bottom - 1), fill=EMPTY)


def _shifts(panel: Panel) -> list[int]:
    """Where each column begins within a panel."""
    return [sum(panel.widths[:i]) + GAP * i for i in range(len(panel.widths))]
