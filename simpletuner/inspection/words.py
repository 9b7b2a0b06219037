"""The health of a dataset in lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from simpletuner.data.health import Health
from simpletuner.wrapping import wrapped

LABEL = 10  # columns before the text of a line
NAMES = 3  # pictures named of each kind; --json and the page have all
BUCKETS = 8


def text(health: Health, width: int = 80) -> str:
    """The dataset in a dozen lines of at most `width` columns, as far as names allow."""
    room = max(20, width - LABEL)
    lines = [f"DATASET   {health.id}   {health.folder}"]
    for label, line in _rows(health):
        first, *rest = wrapped(line, room) or [""]
        lines += [f"{label:<{LABEL}}{first}".rstrip(), *(" " * LABEL + more for more in rest)]
    return "\n".join(lines)


def _rows(health: Health) -> Iterator[tuple[str, str]]:
    """(label, text) of each line; a label stands on the first of its lines."""
    left_out = f", {len(health.left_out)} left out" if health.left_out else ""
    beyond = f", {health.beyond_subset} beyond max_num_samples" if health.beyond_subset else ""
    yield "images", f"{health.used} of {health.found} are used{left_out}{beyond}"
    for reason, items in health.reasons().items():
        named = [f"{item.path} ({item.detail})" if item.detail else item.path for item in items]
        yield "", f"{reason} {len(items)}: {_some(named)}"
    if health.used:
        regularised = ", for regularisation" if health.regularisation else ""
        times = f"{health.used} x {1 + health.repeats} = " if health.repeats else ""
        batches = f"{health.batches} {_plural(health.batches, 'batch', 'batches')} of {health.batch_size}"
        topped = f", {health.doubles} of them met once more to fill the last ones" if health.doubles else ""
        yield "epoch", f"{times}{health.samples} samples in {batches}{topped}{regularised}"
    yield from _bucket_rows(health)
    yield from _caption_rows(health)
    if health.copies:
        extra = sum(len(paths) - 1 for paths in health.copies)
        pairs = [" = ".join(paths[:NAMES]) + (" ..." if len(paths) > NAMES else "") for paths in health.copies]
        yield "copies", f"{extra} {_plural(extra, 'file has', 'files have')} the bytes of another: {_some(pairs)}"
    if health.upscaled:
        grown = [f"{item.path} {item.size} to {item.resize}" for item in health.upscaled]
        number = len(health.upscaled)
        yield "upscaled", f"{number} {_plural(number, 'image grows', 'images grow')}: {_some(grown)}"


def _bucket_rows(health: Health) -> Iterator[tuple[str, str]]:
    label = "buckets"
    for bucket, images in list(health.buckets.items())[:BUCKETS]:
        share = health.shares[bucket]
        doubles = f", {share.doubles} met once more" if share.doubles else ""
        images_of = f"{images} {_plural(images, 'image', 'images')}"
        yield label, f"{bucket:<10} {images_of}, {share.batches} {_plural(share.batches, 'batch', 'batches')}{doubles}"
        label = ""
    if (more := len(health.buckets) - BUCKETS) > 0:
        yield "", f"and {more} smaller"


def _caption_rows(health: Health) -> Iterator[tuple[str, str]]:
    captions = health.captions
    told = [f"{captions.texts} distinct {_plural(captions.texts, 'text', 'texts')}"]
    told += [f"several on {captions.alternatives}"] if captions.alternatives else []
    told += [f"an empty one on {captions.empty}"] if captions.empty else []
    yield "captions", f"{captions.strategy}: {', '.join(told)}"
    if captions.without:
        yield "", f"none for {len(captions.without)}: {_some(captions.without)}"
    path, longest = captions.longest
    if longest:
        yield "", f'longest {len(longest)} letters: {path}  "{_short(longest)}"'
    if captions.repeated:
        same = [f'"{_short(caption)}" on {images}' for caption, images in captions.repeated]
        yield "", f"on several images: {_some(same)}"


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f", and {more} more" if more > 0 else "")


def _short(caption: str, letters: int = 40) -> str:
    line = " ".join(caption.split())
    return line if len(line) <= letters else line[: letters - 1].rstrip() + "…"


def _plural(number: int, one: str, many: str) -> str:
    return one if number == 1 else many
