"""From a folder to samples: which files are images, how large they are, what their captions say (data.md section 5).

Only headers are read. Nothing is written into the dataset's folder; every image that is left out is listed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import splitext
from typing import NamedTuple

from simpletuner.data import captions
from simpletuner.data.ahead import ahead, threads
from simpletuner.data.datasets import ImageSet
from simpletuner.data.geometry import place
from simpletuner.data.index import Index, Row
from simpletuner.data.pictures import EXTENSIONS, MODES, Rejected, read_header
from simpletuner.errors import Problem
from simpletuner.protocols import Source
from simpletuner.types import Placement, Sample, Size

ROWS_AT_ONCE = 10_000  # rows between two saves of the index
NAMES_SHOWN = 10
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

    def reasons(self) -> dict[str, int]:
        return dict(sorted(Counter(item.reason for item in self.left_out).items()))


def is_image(path: str) -> bool:
    """Whether a file's name says that it is an image of the set."""
    stem, ending = splitext(path)  # a million times: pathlib would take seconds
    if ending.lower() not in EXTENSIONS or stem.endswith(OTHER_KINDS):
        return False
    return not any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


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
    changed = [path for path in images if path not in rows or rows[path].stamp != stamps[path]]
    found.headers_read = len(changed)
    _read_headers(dataset, source, index, rows, [(path, stamps[path]) for path in changed])
    unusable = _read_captions(dataset, source, index, rows, images, stamps, found.problems)
    without: list[str] = []
    for path in images:
        if path in unusable:
            found.left_out.append(LeftOut(path, "no-caption", unusable[path]))
        else:
            _admit(dataset, rows[path], found, without)
    if without and dataset.entry.missing_caption == "error":
        found.problems.append(_no_captions(dataset, without))
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


def _read_headers(
    dataset: ImageSet, source: Source, index: Index, rows: dict[str, Row], changed: Sequence[tuple[str, str]]
) -> None:
    """Fills `rows` and the index with the headers of the given (path, stamp) pairs."""

    def header(job: tuple[str, str]) -> Row:
        path, stamp = job
        try:
            found = read_header(lambda length: source.read(path, 0, length))
        except Rejected as error:
            return Row(path, stamp, reason=error.reason, detail=error.detail)
        reason = "" if found.mode in MODES else "unsupported-mode"
        return Row(path, stamp, *found.size, found.format, reason=reason, detail=found.mode if reason else "")

    pending: list[Row] = []
    saved = time.monotonic()
    workers = threads(dataset.entry.max_workers)
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
    for path in images:
        row = rows[path]
        file = next((p for p in captions.caption_paths(path, dataset.entry.caption_extension) if p in stamps), None)
        stamp = f"{file}:{stamps[file]}" if file else ""
        if row.caption_stamp == stamp:
            continue
        row.caption_stamp, row.caption = stamp, None
        if file:
            try:
                row.caption = captions.decode(source.read(file))
            except (captions.Unreadable, OSError) as error:
                if getattr(error, "fatal", False):
                    wrong.append(f"{file}: {error}")
                unusable[path] = f"{file}: {error}"
                row.caption_stamp = ""  # so that it is looked at again
        changed.append(row)
    index.put(changed)
    if wrong:
        message = f"dataset {dataset.id}: {len(wrong)} caption files cannot be used"
        details = tuple(wrong[:NAMES_SHOWN])
        problems.append(Problem(message, "dataset", where=dataset.where, fix="mend or remove them", details=details))
    return unusable


def _admit(dataset: ImageSet, row: Row, found: Scan, without: list[str]) -> None:
    """Puts one image among the items, or among those left out."""
    size = Size(row.height, row.width)
    if row.reason:
        found.left_out.append(LeftOut(row.path, row.reason, row.detail))
        return
    if size.height * size.width > dataset.pixel_limit:
        found.left_out.append(LeftOut(row.path, "too-many-pixels", str(size)))
        return
    placement = place(size, dataset.shape, id=dataset.id, path=row.path)
    if isinstance(placement, str):
        found.left_out.append(LeftOut(row.path, placement, str(size)))
        return
    if placement.resize.height * placement.resize.width > dataset.pixel_limit:  # a hair-thin image, before its crop
        found.left_out.append(LeftOut(row.path, "aspect-out-of-range", f"{size} would become {placement.resize}"))
        return
    texts = captions.variants(dataset.entry, dataset.prompts, row.path, row.caption)
    if not texts:
        found.left_out.append(LeftOut(row.path, "no-caption"))
        without.append(row.path)
        return
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
        beside = sum(captions.caption_paths(path, ".txt")[0] in stamps for path in images)
        if beside * 2 >= len(images) and beside:
            text = f"{beside} of {len(images)} images have a .txt beside them"
            found.notices.append(f'dataset {dataset.id}: {text}; "caption_strategy": "textfile" would use them')
    if not dataset.prompts and any(captions.TRIGGER in text for item in found.items for text in item.sample.captions):
        found.notices.append(f"dataset {dataset.id}: captions hold {captions.TRIGGER}, but there is no instance_prompt")
    old = [p for p in stamps if p.startswith(("aspect_ratio_bucket_", "aspect_resolution_map-")) or p.endswith(".pt")]
    if old:
        found.notices.append(f"dataset {dataset.id}: {len(old)} files of another trainer's cache are not read")


def _nothing(dataset: ImageSet, stamps: dict[str, str]) -> Problem:
    endings = Counter(splitext(path)[1].lower() or "no extension" for path in stamps)
    common = ", ".join(ending for ending, _ in endings.most_common(3)) or "it is empty"
    message = f"no images detected in dataset {dataset.id}: {len(stamps)} files under {dataset.root}"
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
