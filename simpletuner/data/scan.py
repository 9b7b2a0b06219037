"""From a folder to samples: which files are images, how large they are, what their captions say (data.md section 5).

Only headers are read. Nothing is written into the dataset's folder; every image that is left out is listed.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from posixpath import splitext
from typing import NamedTuple

from simpletuner.data import captions
from simpletuner.data.ahead import ahead
from simpletuner.data.datasets import ImageSet
from simpletuner.data.filters import TooSlow
from simpletuner.data.geometry import place
from simpletuner.data.index import Index, Row
from simpletuner.data.pictures import EXTENSIONS, MODES, Rejected, read_header
from simpletuner.data.table import Contents
from simpletuner.data.table import read as read_table
from simpletuner.errors import Problem
from simpletuner.protocols import Source
from simpletuner.types import Placement, Sample, Size

ROWS_AT_ONCE = 10_000  # rows between two saves of the index
NAMES_SHOWN = 10
SLOW_ENOUGH = 3  # captions, each a second or more: the next thousand would be no news
OTHER_KINDS = ("-masklabel", "-condlabel")  # stems of masks and conditions that lie beside their images


class Placed(NamedTuple):
    """A sample that is used, and how."""

    sample: Sample
    placement: Placement


class LeftOut(NamedTuple):
    """An image that is not used, and why; reasons are those of data.md section 5."""

    path: str
    reason: str
    detail: str = ""


@dataclass
class Scan:
    """What was found in one dataset, in natural order."""

    items: list[Placed] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)  # what must be mended before training
    num_files: int = 0
    headers_read: int = 0
    beyond_subset: int = 0  # usable, but outside max_num_samples
    table: Contents | None = None

    def reasons(self) -> dict[str, int]:
        return dict(sorted(Counter(item.reason for item in self.left_out).items()))


def is_image(path: str) -> bool:
    """Whether a file's name says that it is an image of the set."""
    dot = path.rfind(".")  # a million times: pathlib would take seconds, and os.path a good part of one
    if dot < 0 or path[dot:].lower() not in EXTENSIONS or path.endswith(OTHER_KINDS, 0, dot):
        return False
    rooted = "/" + path
    return "/." not in rooted and "/__MACOSX/" not in rooted


@contextmanager
def _uncollected() -> Iterator[None]:
    """Within it nobody looks for cycles: a hundred thousand rows and samples have none, and would be walked often."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def scan(dataset: ImageSet, source: Source, index: Index) -> Scan:
    """The samples of one dataset with their placements, and what is wrong. DataError if it cannot be listed at all."""
    stamps = {listing.path: listing.stamp for listing in source.list()}
    found = Scan(num_files=len(stamps))
    images: list[str] = []
    unnamed: list[str] = []
    for path in filter(is_image, stamps):
        (images if _encodable(path) else unnamed).append(path)
    found.left_out += [
        LeftOut(os.fsencode(p).decode("utf-8", "replace"), "unreadable", "name is not UTF-8") for p in unnamed
    ]
    if not images and not unnamed:
        found.problems.append(_nothing(dataset, stamps))
        return found
    rows = index.rows()
    index.remove(set(rows) - set(images))
    sizes = _read_table(dataset, source, index, rows, images, stamps, found)
    changed = [p for p in images if p not in sizes and (p not in rows or rows[p].stamp != stamps[p] or rows[p].claimed)]
    found.headers_read = len(changed)
    _read_headers(dataset, source, index, rows, [(path, stamps[path]) for path in changed])
    unusable = _read_captions(dataset, source, index, rows, images, stamps, found.problems)
    without: list[str] = []
    slow: list[str] = []
    for path in images:
        if path in unusable:
            found.left_out.append(LeftOut(path, "no-caption", unusable[path]))
        else:
            _admit(dataset, rows[path], found, without, slow)
            if len(slow) >= SLOW_ENOUGH:
                break
    if without and dataset.entry.missing_caption == "error" and not (found.table and found.table.problems):
        found.problems.append(_no_captions(dataset, without))
    if slow:
        message = f"dataset {dataset.id}: caption_filter_list takes too long"
        fix = "write the entry so that it has fewer ways to match"
        found.problems.append(Problem(message, "dataset", where=dataset.where, fix=fix, details=tuple(slow)))
    _take_subset(dataset, found)
    _notice(dataset, source, found, images, stamps)
    write_rejected(dataset, found.left_out)
    if not found.items and not found.problems:
        reasons = ", ".join(f"{reason} {count}" for reason, count in found.reasons().items())
        message = f"dataset {dataset.id}: none of {len(images) + len(unnamed)} images can be used: {reasons}"
        fix = f"{rejected_path(dataset)} lists them"
        found.problems.append(Problem(message, "dataset", where=dataset.where, fix=fix))
    return found


def _encodable(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def header_row(path: str, stamp: str, read: Callable[[int | None], bytes]) -> Row:
    """What a file's header says; `read(n)` gives its first n bytes, `read(None)` all."""
    try:
        found = read_header(read)
    except Rejected as error:
        return Row(path, stamp, reason=error.reason, detail=error.detail)
    reason = "" if found.mode in MODES else "unsupported-mode"
    return Row(path, stamp, *found.size, found.format, reason=reason, detail=found.mode if reason else "")


def _read_table(
    dataset: ImageSet, source: Source, index: Index, rows: dict[str, Row], images: Sequence[str],
    stamps: dict[str, str], found: Scan,
) -> set[str]:  # fmt: skip
    """Reads the dataset's table. Fills `rows` and the index with the sizes that it has; returns the paths of those.

    A file whose header was read is known better than the table knows it.
    """
    if dataset.table is None:
        return set()
    found.table = read_table(dataset.table, source, images)
    found.problems += [replace(p, message=f"dataset {dataset.id}: {p.message}") for p in found.table.problems]
    found.notices += [f"dataset {dataset.id}: {notice}" for notice in found.table.notices]
    sizes = {path: facts.size for path, facts in found.table.facts.items() if facts.size}
    new: list[Row] = []
    wrong: list[str] = []
    for path, size in sizes.items():
        row = rows.get(path)
        if row is None or row.stamp != stamps[path] or (row.claimed and (row.height, row.width) != size):
            new.append(Row(path, stamps[path], *size))
        elif not row.claimed and not row.reason and (row.height, row.width) != size:
            wrong.append(f"{path} is {row.width}x{row.height}, not {size}")
    rows.update((row.path, row) for row in new)
    index.put(new)
    if wrong:
        found.notices.append(f"dataset {dataset.id}: {len(wrong)} sizes in {dataset.table} are wrong: {wrong[0]}")
    return set(sizes)


def _read_headers(
    dataset: ImageSet, source: Source, index: Index, rows: dict[str, Row], changed: Sequence[tuple[str, str]]
) -> None:
    """Fills `rows` and the index with the headers of the given (path, stamp) pairs."""

    def header(job: tuple[str, str]) -> Row:
        path, stamp = job
        return header_row(path, stamp, lambda length: source.read(path, 0, length))

    pending: list[Row] = []
    saved = time.monotonic()
    workers = dataset.place.readers(dataset.entry.max_workers)
    for (path, _), row in ahead(changed, header, workers=workers, limit=8 * workers):
        rows[path] = row
        pending.append(row)
        if len(pending) >= ROWS_AT_ONCE or time.monotonic() - saved > dataset.entry.metadata_update_interval:
            index.put(pending)
            pending, saved = [], time.monotonic()
    index.put(pending)


def _read_captions(
    dataset: ImageSet, source: Source, index: Index, rows: dict[str, Row], images: Iterable[str],
    stamps: dict[str, str], problems: list[Problem],
) -> dict[str, str]:  # fmt: skip
    """Fills in the texts of caption files that are new or changed. Returns images whose file does not decode, and why.

    A problem names the files that hold what no caption may hold.
    """
    unusable: dict[str, str] = {}
    if dataset.entry.caption_strategy != "textfile" or dataset.entry.only_instance_prompt:
        return unusable
    wrong: list[str] = []
    changed: list[Row] = []
    jobs: list[tuple[Row, str]] = []
    for path in images:
        row = rows[path]
        file = next((p for p in captions.caption_paths(path, dataset.entry.caption_extension) if p in stamps), None)
        stamp = f"{file}:{stamps[file]}" if file else ""
        if row.caption_stamp == stamp:
            continue
        row.caption_stamp, row.caption = stamp, None
        changed.append(row)
        if file:
            jobs.append((row, file))
    for (row, file), text in _texts(dataset, source, jobs):
        if isinstance(text, str):
            row.caption = text
            continue
        if getattr(text, "fatal", False):
            wrong.append(f"{file}: {text}")
        unusable[row.path] = f"{file}: {text}"
        row.caption_stamp = ""  # so that it is looked at again
    index.put(changed)
    if wrong:
        message = f"dataset {dataset.id}: {len(wrong)} caption files cannot be used"
        details = tuple(wrong[:NAMES_SHOWN])
        problems.append(Problem(message, "dataset", where=dataset.where, fix="mend or remove them", details=details))
    return unusable


def _texts(
    dataset: ImageSet, source: Source, jobs: Sequence[tuple[Row, str]]
) -> Iterable[tuple[tuple[Row, str], str | Exception]]:
    """(row, caption file) with what is written in the file, or why it cannot be used."""

    def read(job: tuple[Row, str]) -> str | Exception:
        try:
            return captions.decode(source.read(job[1]))
        except (captions.Unreadable, OSError) as error:
            return error

    if dataset.place.folder:  # to hand a file to a thread takes longer than to read it from a disk
        return ((job, read(job)) for job in jobs)
    workers = dataset.place.readers(dataset.entry.max_workers)
    return ahead(jobs, read, workers=workers, limit=8 * workers)


def placed(dataset: ImageSet, row: Row) -> Placement | LeftOut:
    """How an image of that size is used, or why it is not."""
    size = Size(row.height, row.width)
    if row.reason:
        return LeftOut(row.path, row.reason, row.detail)
    if size.height * size.width > dataset.pixel_limit:
        return LeftOut(row.path, "too-many-pixels", str(size))
    placement = place(size, dataset.shape, id=dataset.id, path=row.path)
    if isinstance(placement, str):
        return LeftOut(row.path, placement, str(size))
    if placement.resize.height * placement.resize.width > dataset.pixel_limit:  # a hair-thin image, before its crop
        return LeftOut(row.path, "aspect-out-of-range", f"{size} would become {placement.resize}")
    return placement


def _captions(dataset: ImageSet, row: Row, table: Contents | None) -> tuple[str, ...]:
    entry = dataset.entry
    found: Sequence[str] = captions.read(entry, row.path, row.caption)
    if table and table.table.captions:
        found = table.facts[row.path].captions if row.path in table.facts else ()
    return captions.variants(entry, dataset.prompts, row.path, found, dataset.filters, dataset.shuffle)


def _admit(dataset: ImageSet, row: Row, found: Scan, without: list[str], slow: list[str]) -> None:
    """Puts one image among the items, among those left out, or among those whose caption cannot be filtered."""
    placement = placed(dataset, row)
    if isinstance(placement, LeftOut):
        found.left_out.append(placement)
        return
    try:
        texts = _captions(dataset, row, found.table)
    except TooSlow as error:
        slow.append(f"{row.path}: {error}")
        return
    if not texts:
        found.left_out.append(LeftOut(row.path, "no-caption"))
        without.append(row.path)
        return
    size = Size(row.height, row.width)
    sample = Sample(f"{dataset.id}/{row.path}", dataset.id, row.path, size, row.stamp, texts, row.digest)
    found.items.append(Placed(sample, placement))


def _take_subset(dataset: ImageSet, found: Scan) -> None:
    most = dataset.entry.max_num_samples
    if most and len(found.items) > most:
        ranked = sorted(found.items, key=lambda item: hashlib.sha256(item.sample.id.encode()).digest())
        kept = {item.sample.id for item in ranked[:most]}
        found.beyond_subset = len(found.items) - most
        found.items = [item for item in found.items if item.sample.id in kept]


def _notice(dataset: ImageSet, source: Source, found: Scan, images: Sequence[str], stamps: dict[str, str]) -> None:
    for loop in getattr(source, "loops", []):
        found.notices.append(f"dataset {dataset.id}: {loop} links to a folder above itself and is not followed")
    if dataset.entry.caption_strategy == "filename":
        texts = {path for path in stamps if path.endswith(".txt")}
        beside = sum(captions.caption_paths(path, ".txt")[0] in texts for path in images) if texts else 0
        if beside * 2 >= len(images) and beside:
            text = f"{beside} of {len(images)} images have a .txt beside them"
            found.notices.append(f'dataset {dataset.id}: {text}; "caption_strategy": "textfile" would use them')
    if not dataset.prompts and any(captions.TRIGGER in text for item in found.items for text in item.sample.captions):
        found.notices.append(f"dataset {dataset.id}: captions hold {captions.TRIGGER}, but there is no instance_prompt")
    if (shuffle := dataset.shuffle) and not shuffle.include_original:
        kept = [text for item in found.items for text in item.sample.captions if text and not shuffle.orders(text)]
        if kept:
            text = f'{len(kept)} captions have no other order and stay as they are, such as "{kept[0]}"'
            found.notices.append(f"dataset {dataset.id}: caption_shuffle: {text}")
    old = [p for p in stamps if p.startswith(("aspect_ratio_bucket_", "aspect_resolution_map-")) or p.endswith(".pt")]
    if old:
        found.notices.append(f"dataset {dataset.id}: {len(old)} files of another trainer's cache are not read")


def _nothing(dataset: ImageSet, stamps: dict[str, str]) -> Problem:
    endings = Counter(splitext(path)[1].lower() or "no extension" for path in stamps)
    common = ", ".join(ending for ending, _ in endings.most_common(3)) or "it is empty"
    message = f"no images detected in dataset {dataset.id}: {len(stamps)} files under {dataset.place}"
    return Problem(
        f"{message}, none with an accepted extension ({common})",
        "dataset",
        where=dataset.where,
        fix="accepted: " + " ".join(sorted(EXTENSIONS)),
    )


def _no_captions(dataset: ImageSet, paths: list[str]) -> Problem:
    more = len(paths) - NAMES_SHOWN
    shown = paths[:NAMES_SHOWN] + ([f"and {more} more"] if more > 0 else [])
    return Problem(
        f"dataset {dataset.id}: {len(paths)} images have no caption",
        "dataset",
        where=dataset.where,
        fix='write the captions, or set "missing_caption" to skip, instance_prompt or empty',
        details=tuple(shown),
    )


def rejected_path(dataset: ImageSet) -> Path:
    return dataset.cache / f"rejected-{dataset.id}.jsonl"


def write_rejected(dataset: ImageSet, left_out: Sequence[LeftOut]) -> None:
    """Lists the images that are not used, one JSON object a line, beside the latents."""
    path = rejected_path(dataset)
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}-0")
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside.open("w", encoding="utf-8") as file:
        for item in left_out:
            file.write(json.dumps(item._asdict(), ensure_ascii=False) + "\n")
    os.replace(aside, path)
