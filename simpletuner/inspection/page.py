"""The health of datasets as one HTML page with thumbnails inside; it can be sent as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

from simpletuner.data.health import Health
from simpletuner.data.library import Shelf
from simpletuner.data.pictures import Rejected, open_rgb, placed
from simpletuner.data.scan import Placed
from simpletuner.errors import Problem
from simpletuner.inspection.sheet import by_bucket, chosen
from simpletuner.tracking.report.document import document
from simpletuner.tracking.report.images import inside

EDGE = 240  # pixels, of a thumbnail
MOST_CROPS = 120  # of a dataset, spread evenly: a page of a few megabytes
MOST_ROWS = 200  # of a table
KINDS = {"#": ' class="number"', "!": ' class="key"'}  # numbers; words that stay in one line
TINY = 128  # pixels; up to here every pixel is shown as a square
FOOTER = "SimpleTuner. Made by <code>simpletuner dataset report --html</code>; the folders of the images are as before."


def render(found: Sequence[tuple[Shelf, Health]], problems: Iterable[Problem]) -> str:
    """The whole page."""
    used = sum(health.used for _, health in found)
    name = ", ".join(health.id for _, health in found) or "no dataset"
    head = (
        f'<header><p class="state">dataset report</p><h1>{escape(name)}</h1>'
        f'<p class="subtitle">{used} images are used</p></header>'
    )
    sections = [part for shelf, health in found for part in _dataset(shelf, health, several=len(found) > 1)]
    return document(name, [head, _problems(problems), *sections], footer=FOOTER)


def _problems(problems: Iterable[Problem]) -> str:
    lines = "".join(
        f'<li class="{problem.severity}"><span class="step">{problem.severity}</span>'
        f"<p>{escape(chr(10).join([problem.message, *problem.details]))}</p></li>"
        for problem in problems
    )
    return f'<h2>To mend</h2><ul class="card wide log">{lines}</ul>' if lines else ""


def _dataset(shelf: Shelf, health: Health, several: bool) -> list[str]:
    title = f"<h2>{escape(health.id)}</h2>" if several else ""
    return [
        f'{title}<p class="quiet">{escape(health.folder)}</p>',
        _numbers(health),
        _left_out(shelf, health),
        _buckets(health),
        _captions(health),
        _copies(health),
        _upscaled(health),
        _crops(shelf),
    ]


def _numbers(health: Health) -> str:
    rows = [
        ("images used", f"{health.used} <small>of {health.found}</small>"),
        ("samples per epoch", f"{health.samples} <small>{health.used} x {1 + health.repeats}</small>"),
        ("batches", f"{health.batches} <small>of {health.batch_size}</small>"),
        ("met once more", f"{health.doubles} <small>to fill batches</small>"),
        ("distinct captions", str(health.captions.texts)),
        ("upscaled", str(len(health.upscaled))),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in rows)
    return f'<dl class="numbers">{cells}</dl>'


def _left_out(shelf: Shelf, health: Health) -> str:
    rows = [
        [_thumbnail(_as_it_is(shelf, item.path)), escape(item.path), escape(item.reason), escape(item.detail)]
        for items in health.reasons().values()
        for item in items[:MOST_ROWS]
    ]
    return _table("Left out", ["", "file", "reason", ""], rows, total=len(health.left_out))


def _buckets(health: Health) -> str:
    rows = [
        [escape(bucket), str(images), str(share.samples), str(share.batches), str(share.doubles)]
        for bucket, images in health.buckets.items()
        for share in [health.shares[bucket]]
    ]
    return _table("Buckets", ["size", "#images", "#samples", "#batches", "#met once more"], rows)


def _captions(health: Health) -> str:
    captions = health.captions
    facts = [f"read as {captions.strategy}", f"{captions.texts} distinct"]
    facts += [f"several on {captions.alternatives}"] if captions.alternatives else []
    facts += [f"an empty one on {captions.empty}"] if captions.empty else []
    path, longest = captions.longest
    rows = [["longest", f"{len(longest)} letters", escape(path), escape(longest)]] if longest else []
    rows += [["repeated", f"{images} images", "", escape(caption)] for caption, images in captions.repeated[:MOST_ROWS]]
    return f"<h2>Captions</h2><p>{escape(', '.join(facts))}</p><br>{_table('', ['!', '!', 'file', 'caption'], rows)}"


def _copies(health: Health) -> str:
    rows = [[escape(", ".join(paths))] for paths in health.copies[:MOST_ROWS]]
    return _table("Files with the same bytes", ["files"], rows, total=len(health.copies))


def _upscaled(health: Health) -> str:
    rows = [[escape(item.path), item.size, item.resize, f"{item.share:.0%}"] for item in health.upscaled[:MOST_ROWS]]
    return _table("Upscaled", ["file", "#is", "#becomes, before the crop", "#grows by"], rows, len(health.upscaled))


def _table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]], total: int = 0) -> str:
    """Cells are HTML. The first letter of a column's name may say what it holds. Empty without rows."""
    if not rows:
        return ""
    kinds = [KINDS.get(name[:1], "") for name in names]
    head = "".join(f"<th{kind}>{name.lstrip('#!')}</th>" for name, kind in zip(names, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{text}</td>" for text, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    rest = f'<p class="quiet">and {total - len(rows)} more</p>' if total > len(rows) else ""
    heading = f"<h2>{title}</h2>" if title else ""
    return f'{heading}<div class="card wide"><table><tr>{head}</tr>{body}</table></div>{rest}'


def _crops(shelf: Shelf) -> str:
    """What is encoded, bucket by bucket."""
    items = by_bucket(shelf, chosen(shelf.items, MOST_CROPS))
    cells = "".join(_crop(shelf, item) for item in items)
    note = f"{len(items)} of {len(shelf.items)}, cropped as they are trained on"
    return f'<h2>Pictures</h2><p class="quiet">{note}</p><div class="crops">{cells}</div>' if items else ""


def _crop(shelf: Shelf, item: Placed) -> str:
    sample, placement = item
    try:
        picture = placed(shelf.source.read(sample.path), placement, pixel_limit=shelf.dataset.pixel_limit)
    except (Rejected, OSError) as error:
        name = escape(sample.path)
        return f'<figure><p class="quiet">{escape(str(error))}</p><figcaption>{name}</figcaption></figure>'
    more = f" (and {len(sample.captions) - 1} more)" if len(sample.captions) > 1 else ""
    caption = escape((sample.captions[0] or "(empty caption)") + more)
    return (
        f"<figure>{_thumbnail(picture)}<figcaption>{caption}<br>"
        f'<span class="quiet">{placement.bucket} of {sample.size} · {escape(sample.path)}</span></figcaption></figure>'
    )


def _as_it_is(shelf: Shelf, path: str) -> Image.Image | None:
    """A picture that is left out, if it can be shown at all."""
    try:
        return open_rgb(shelf.source.read(path), pixel_limit=shelf.dataset.pixel_limit)
    except (Rejected, OSError):
        return None


def _thumbnail(image: Image.Image | None) -> str:
    if image is None:
        return ""
    tiny = ' class="tiny"' if max(image.size) <= TINY else ""
    return f'<img{tiny} loading="lazy" src="{inside(image, EDGE)}" alt="">'
