"""Sheets of crops with their captions: what training really sees, bucket by bucket."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from simpletuner.data.geometry import enlargement
from simpletuner.data.library import Shelf
from simpletuner.data.pictures import Rejected, placed
from simpletuner.data.scan import Placed

CELL = 320  # pixels, of the long edge of a crop; a tiny one is enlarged by a whole factor
ACROSS = 4
MARGIN, GAP = 24, 20
TALLEST = 4096  # pixels, of a sheet: many viewers stop there
TEXT, SMALL = 16, 13  # letters
LINE = 20  # pixels, of a line of text
CAPTION_LINES = 4
PAPER, INK, QUIET, ALARM = (24, 24, 27), (244, 244, 245), (161, 161, 170), (252, 165, 165)
LOST = "�"  # in place of a letter that the bundled font lacks


class Cell(NamedTuple):
    """One crop as it is drawn, with the lines below it."""

    image: Image.Image | None  # None: it cannot be decoded, and `note` says why
    caption: tuple[str, ...]
    note: str

    @property
    def height(self) -> int:
        return (self.image.height if self.image else LINE) + 8 + LINE * (len(self.caption) + 1)


def sheets(shelf: Shelf, count: int) -> Iterator[Image.Image]:
    """Pages with `count` crops, or all if there are fewer, spread evenly over the dataset, bucket by bucket."""
    items = by_bucket(shelf, chosen(shelf.items, count))
    lines: list[list[Cell]] = []
    for start in range(0, len(items), ACROSS):
        line = [cell(shelf, item) for item in items[start : start + ACROSS]]
        if lines and _height([*lines, line]) > TALLEST:
            yield _page(lines)
            lines = []
        lines.append(line)
    if lines:
        yield _page(lines)


def chosen(items: Sequence[Placed], count: int) -> list[Placed]:
    """`count` of the items at even distances, in their order."""
    step = max(1.0, len(items) / count)
    return [items[int(i * step)] for i in range(min(count, len(items)))]


def by_bucket(shelf: Shelf, items: Iterable[Placed]) -> list[Placed]:
    """The items in the order of their buckets, the fullest first, as `shelf.buckets` has them."""
    wanted = {item.sample.id for item in items}
    return [item for bucket in shelf.buckets().values() for item in bucket if item.sample.id in wanted]


def cell(shelf: Shelf, item: Placed) -> Cell:
    """The crop of one image: the pixels that the encoder is given, only smaller."""
    sample, placement = item
    captions = sample.captions
    more = f" (and {len(captions) - 1} more)" if len(captions) > 1 else ""
    caption = tuple(wrapped((captions[0] or "(empty caption)") + more))
    grown = enlargement(sample.size, placement.resize)
    facts = [f"{placement.bucket} of {sample.size}", *([f"grows {grown:.0%}"] if grown > 0 else []), sample.path]
    try:
        image = placed(shelf.source.read(sample.path), placement, pixel_limit=shelf.dataset.pixel_limit)
    except (Rejected, OSError) as error:
        return Cell(None, caption, f"{sample.path}: {error}")
    return Cell(fitted(image), caption, ", ".join(facts))


def fitted(image: Image.Image) -> Image.Image:
    factor = CELL / max(image.size)
    if factor >= 1:
        width, height = (edge * int(factor) for edge in image.size)
        return image.resize((width, height), Image.Resampling.NEAREST)
    width, height = (max(1, round(edge * factor)) for edge in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


@functools.lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@functools.lru_cache(maxsize=4096)
def _known(letter: str) -> bool:
    font = _font(TEXT)
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010fffe"))


def readable(text: str) -> str:
    """`text` in one line, in letters that the bundled font has."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", " ".join(text.split())) if not unicodedata.combining(c))
    return "".join(c if _known(c) else LOST if _known(LOST) else "?" for c in plain)


def wrapped(text: str) -> list[str]:
    """The caption in lines as wide as a cell; what does not fit into four of them ends in an ellipsis."""
    lines: list[str] = []
    rest = readable(text)
    while rest and len(lines) < CAPTION_LINES:
        last = len(lines) == CAPTION_LINES - 1
        length = _fitting(rest, TEXT)
        if length < len(rest) and last:
            lines.append(cut(rest, TEXT))
            break
        if length < len(rest) and (blank := rest.rfind(" ", 0, length + 1)) > 0:
            length = blank
        lines.append(rest[:length].rstrip())
        rest = rest[length:].lstrip()
    return lines


def _fitting(text: str, size: int) -> int:
    """How many letters of `text` fit into a cell."""
    font, low, high = _font(size), 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= CELL else (low, middle - 1)
    return low


def cut(text: str, size: int) -> str:
    """`text`, ended by an ellipsis where it would leave its cell."""
    while _fitting(text, size) < len(text):
        text = text[: max(1, _fitting(text, size) - 2)].rstrip() + "…"
    return text


def _height(lines: Sequence[Sequence[Cell]]) -> int:
    return 2 * MARGIN + sum(max(cell.height for cell in line) + GAP for line in lines) - GAP


def _page(lines: Sequence[Sequence[Cell]]) -> Image.Image:
    across = max(len(line) for line in lines)
    sheet = Image.new("RGB", (2 * MARGIN + across * CELL + (across - 1) * GAP, _height(lines)), PAPER)
    draw, top = ImageDraw.Draw(sheet), MARGIN
    for line in lines:
        for place, one in enumerate(line):
            _draw(sheet, draw, one, MARGIN + place * (CELL + GAP), top)
        top += max(one.height for one in line) + GAP
    return sheet


def _draw(sheet: Image.Image, draw: ImageDraw.ImageDraw, one: Cell, left: int, top: int) -> None:
    if one.image:
        sheet.paste(one.image, (left, top))
    top += (one.image.height if one.image else 0) + 8
    for line in one.caption:
        draw.text((left, top), line, fill=INK, font=_font(TEXT))
        top += LINE
    note = cut(readable(one.note), SMALL)
    draw.text((left, top + 2), note, fill=QUIET if one.image else ALARM, font=_font(SMALL))
