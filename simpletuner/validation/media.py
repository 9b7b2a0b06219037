"""Image files with their settings inside, written whole or not at all, and their list, validation_media.jsonl."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from simpletuner import newfile
from simpletuner.events import append_line, read_lines

EXTENSIONS = {"png": "png", "webp": "webp", "jpeg": "jpg"}
IMAGE_DESCRIPTION, SOFTWARE = 0x010E, 0x0131  # EXIF tags
LIST = "validation_media.jsonl"


def write_whole(path: Path, data: bytes) -> None:
    """`data` as the file `path`; a kill or power cut leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def encoded(image: Image.Image, format: str, quality: int, settings: Mapping[str, Any]) -> bytes:
    """The file's bytes. `settings` become PNG text chunks, elsewhere one JSON object in the EXIF image description."""
    buffer = io.BytesIO()
    if format == "png":
        info = PngImagePlugin.PngInfo()
        for key, value in settings.items():
            info.add_text(key, str(value))
        image.save(buffer, "PNG", pnginfo=info, compress_level=4)  # level 6 takes twice as long for 3 % less
    else:
        exif = Image.Exif()
        exif[IMAGE_DESCRIPTION] = json.dumps(dict(settings))  # ASCII only, as the tag demands
        exif[SOFTWARE] = "SimpleTuner"
        image.save(buffer, format.upper(), quality=quality, exif=exif)
    return buffer.getvalue()


def save(image: Image.Image, path: Path, format: str, quality: int, settings: Mapping[str, Any]) -> str:
    """Writes the image and gives the sha256 of the file."""
    data = encoded(image, format, quality, settings)
    write_whole(path, data)
    return hashlib.sha256(data).hexdigest()


def save_new(image: Image.Image, folder: Path, stem: str, settings: Mapping[str, Any]) -> Path:
    """Writes a PNG under the first `<stem>_<number>.png` that is free, also while another program does the same."""
    data = encoded(image, "png", 0, settings)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{uuid.uuid4().hex}.tmp"
    write_whole(aside, data)
    try:
        return newfile.place_first(aside, (folder / f"{stem}_{number:04d}.png" for number in itertools.count(1)))
    finally:
        aside.unlink(missing_ok=True)


def load(path: Path) -> Image.Image | None:
    """The picture in RGB; None if the file is gone or damaged."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError):  # Pillow raises SyntaxError for a broken PNG
        return None


def same(one: Any, other: Any) -> bool:
    """Equal as JSON, so that a record from disk compares with one in memory."""
    return json.dumps(one, sort_keys=True, default=str) == json.dumps(other, sort_keys=True, default=str)


class MediaList:
    """The images a run has kept, one line each; the last line about a place and step counts."""

    def __init__(self, output_dir: Path):
        self.folder, self.path = output_dir, output_dir / LIST
        self.records = {
            self._key(r): r
            for r in read_lines(self.path)
            if {"step", "nickname", "index", "settings", "file"} <= r.keys()
        }

    @staticmethod
    def _key(record: Mapping[str, Any]) -> tuple[int, tuple[str, int, str]]:
        return record["step"], (record["nickname"], record["index"], record["settings"].get("size", ""))

    def add(self, record: dict[str, Any]) -> None:
        append_line(self.path, record, durable=True)
        self.records[self._key(record)] = record

    def find(self, step: int, place: tuple[str, int, str]) -> dict[str, Any] | None:
        """The record of that place at that step, if its file is still there."""
        record = self.records.get((step, place))
        return record if record and (self.folder / record["file"]).is_file() else None

    def before(self, step: int, place: tuple[str, int, str]) -> dict[str, Any] | None:
        """The newest record of that place before `step`."""
        earlier = sorted((s for s, p in self.records if s < step and p == place), reverse=True)
        return next((found for s in earlier if (found := self.find(s, place))), None)


def read_index(path: Path) -> list[dict[str, Any]]:
    """The records of a benchmark index; empty if there is none or it cannot be read."""
    try:
        images = json.loads(path.read_text("utf-8"))["images"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [r for r in images if isinstance(r, dict) and "file" in r]


def write_index(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    text = json.dumps({"v": 1, "images": list(records)}, ensure_ascii=False, indent=2) + "\n"
    write_whole(path, text.encode())
