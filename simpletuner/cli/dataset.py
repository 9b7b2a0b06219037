"""`simpletuner dataset`: what the datasets of a configuration hold, and what training will see of them. No torch."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simpletuner import newfile
from simpletuner.cli import layout, sources
from simpletuner.cli.answers import answer, usable
from simpletuner.data.datasets import Datasets, ImageSet
from simpletuner.errors import ConfigError, DataError, DiskError
from simpletuner.registry import did_you_mean

if TYPE_CHECKING:
    from PIL import Image

SYNONYMS = {"check": "report"}
PREVIEWED = 60  # crops on the sheets, unless told otherwise
QUALITY = 92  # of a sheet


class Subcommands(click.Group):
    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return super().get_command(ctx, SYNONYMS.get(name, name))


@click.group(
    "dataset",
    cls=Subcommands,
    help="""Looks at the datasets of a configuration. Nothing is written into the folders of the images.

\b
simpletuner dataset report                     what is used, what is left out and why
simpletuner dataset report --html report.html  the same on a page with thumbnails
simpletuner dataset preview cats --out sheets  crops and captions as training sees them
""",
)
def command() -> None:
    pass


@command.command("scan", context_settings=sources.ANY_OPTION, short_help="bring the index up to date")
@click.option("--hash", "again", is_flag=True, help="Reads and decodes every file, also where nothing seems to change.")
@sources.shared
def scan(asked: sources.Asked, as_json: bool, again: bool) -> None:
    """Brings the index of each dataset up to date: sizes, captions, pictures that cannot be used."""
    from simpletuner import inspection

    checked = usable(asked)
    found, wrong = inspection.scan(checked.config, _datasets(checked.datasets), again=again)
    answer([one.sentence() for one in found], {"datasets": [one.record() for one in found]}, wrong, as_json)


@command.command("report", context_settings=sources.ANY_OPTION, short_help="tell what is used, left out, odd")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Also writes one page with thumbnails.")
@sources.shared
def report(asked: sources.Asked, as_json: bool, html: Path | None) -> None:
    """Tells of each dataset: pictures left out and why, buckets, captions, copies, upscaled ones, an epoch's samples.

    Reads each file once to find copies.
    """
    from simpletuner import inspection
    from simpletuner.data.health import examine
    from simpletuner.inspection import words

    checked = usable(asked)
    datasets = _datasets(checked.datasets)
    if html:
        _refuse_images(html, datasets.images, "--html")
    library, wrong = inspection.survey(checked.config, datasets)
    try:
        for shelf in library.shelves:
            shelf.hash()
        healths = [examine(shelf) for shelf in library.shelves]
        if html:
            from simpletuner.inspection.page import render

            _write(html, render(list(zip(library.shelves, healths, strict=True)), wrong).encode())
    finally:
        library.close()
    lines = [words.text(health, layout.columns()) + "\n" for health in healths]
    told = {"page": str(html)} if html else {}
    lines += [f"page: {html}"] if html else []
    answer(lines, {"datasets": [health.record() for health in healths], **told}, wrong, as_json)


@command.command("preview", context_settings=sources.ANY_OPTION, short_help="draw sheets of crops and captions")
@click.argument("name", metavar="ID")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", required=True, help="Folder of the sheets.")
@click.option(
    "--count", type=click.IntRange(1), default=PREVIEWED, show_default=True, metavar="N",
    help="Crops to show, spread evenly over the dataset.",
)  # fmt: skip
@sources.shared
def preview(asked: sources.Asked, as_json: bool, name: str, out: Path, count: int) -> None:
    """Draws sheets of the dataset ID: its crops as they are encoded, bucket by bucket, each with its caption."""
    from simpletuner import inspection
    from simpletuner.inspection import sheet

    checked = usable(asked)
    datasets = _datasets(checked.datasets)
    ids = [image.id for image in datasets.images]
    if name not in ids:
        raise ConfigError(f'no dataset "{name}"', fix=did_you_mean(name, ids))
    _refuse_images(out, datasets.images, "--out")
    library, wrong = inspection.survey(checked.config, datasets, only=name)
    written: list[str] = []
    try:
        if not any(shelf.items for shelf in library.shelves):
            raise DataError(wrong)
        for image in sheet.sheets(library.shelves[0], count):
            path = out / f"{name}-{len(written) + 1}.jpg"
            _write(path, _jpeg(image))
            written.append(str(path))
    finally:
        library.close()
    answer(written, {"sheets": written}, [], as_json)


def _datasets(found: Datasets | None) -> Datasets:
    assert found is not None  # or the configuration was refused
    return found


def _refuse_images(path: Path, images: Iterable[ImageSet], option: str) -> None:
    """ConfigError if `path` lies in a folder of images: nothing is ever written there."""
    resolved = path.resolve()
    for image in images:
        root = image.place.folder.resolve() if image.place.folder else None
        if root and (resolved == root or root in resolved.parents):
            raise ConfigError(
                f"{option}: {path} lies in {image.place}, the images of dataset {image.id}", fix="choose another folder"
            )


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all. DiskError says why not."""
    try:
        newfile.replace(path, data)
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror or error}", fix="free some space, or check permissions") from error
