"""How the report shows an image file: by a relative link, or with its pixels inside the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

if TYPE_CHECKING:
    from PIL import Image

LARGEST_EDGE = 1024  # pixels, of an image inside the page
THUMB_EDGE = 128
QUALITY = 80


class Images(Protocol):
    """The address of an image file, given relative to the run's folder."""

    def full(self, file: str) -> str: ...
    def thumb(self, file: str) -> str: ...


class Linked:
    """The files stay where they are: the page works as long as it lies beside them."""

    def full(self, file: str) -> str:
        return quote(file)

    thumb = full


class Embedded:
    """WebP of at most 1,024 pixels in the page itself, which can then be sent as one file."""

    def __init__(self, folder: Path):
        self.folder = folder

    def full(self, file: str) -> str:
        return self._data(file, LARGEST_EDGE)

    def thumb(self, file: str) -> str:
        return self._data(file, THUMB_EDGE)

    def _data(self, file: str, edge: int) -> str:
        from PIL import Image

        with Image.open(self.folder / file) as image:
            return inside(image, edge)


def inside(image: Image.Image, edge: int) -> str:
    """The address that is the picture itself, with edges of at most `edge` pixels."""
    buffer = io.BytesIO()
    small = max(image.size) <= THUMB_EDGE  # every pixel of a tiny picture shows
    shown = image.convert("RGB")
    shown.thumbnail((edge, edge))
    shown.save(buffer, "WEBP", quality=QUALITY, lossless=small)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
