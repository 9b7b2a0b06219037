"""All datasets of a run, scanned and placed: what there is to encode, to plan and to describe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from simpletuner.data.ahead import ahead, threads
from simpletuner.data.datasets import Datasets, ImageSet
from simpletuner.data.geometry import enlargement
from simpletuner.data.index import Index, Row
from simpletuner.data.options import Data
from simpletuner.data.pictures import BYTES_PER_PIXEL, Rejected, open_rgb
from simpletuner.data.sampling import Pool, smallest_repeats
from simpletuner.data.scan import LeftOut, Placed, Scan, header_row, placed, rejected_path, scan, write_rejected
from simpletuner.errors import AccessError, ConfigError, DataError, Problem, RemoteError
from simpletuner.events import EventLog
from simpletuner.protocols import Source
from simpletuner.types import Placement, Size

MOST_BYTES_READ = 1 << 30  # held in memory together while files are hashed or decoded
MOST_MARKS = 10_000  # above it a checkpoint would carry megabytes of them


@dataclass
class Shelf:
    """One dataset with what was found in it."""

    dataset: ImageSet
    source: Source
    index: Index
    scan: Scan
    batch_size: int
    repeats: int
    mended: list[str] = field(default_factory=list)  # sizes of the table that its files do not have

    @property
    def id(self) -> str:
        return self.dataset.id

    @property
    def items(self) -> list[Placed]:
        return self.scan.items

    def buckets(self) -> dict[str, list[Placed]]:
        """Items by "WIDTHxHEIGHT" of their bucket, largest bucket first."""
        found: dict[str, list[Placed]] = {}
        for item in self.items:
            found.setdefault(str(item.placement.bucket), []).append(item)
        return dict(sorted(found.items(), key=lambda pair: (-len(pair[1]), pair[0])))

    def pool(self) -> Pool:
        ids = {bucket: [item.sample.id for item in items] for bucket, items in self.buckets().items()}
        return Pool(self.id, ids, self.batch_size, self.repeats, self.dataset.entry.probability)

    @property
    def unread_bytes(self) -> int:
        """How much `hash` would read."""
        return sum(_bytes_of(item.sample.stamp) for item in self.items if not item.sample.digest)

    def hash(self, decode: bool = False) -> int:
        """Reads every file whose digest is not known yet; returns how many.

        A file that is gone is left out; with `decode`, one whose pixels are damaged as well. A size that a table gave
        is compared with the header, and mended.
        """
        unknown = [item for item in self.items if not item.sample.digest]
        if not unknown:
            return 0
        rows = self.index.rows()

        def digest(item: Placed) -> Row | Rejected:
            row = rows[item.sample.path]
            try:
                data = self.source.read(row.path)
                if decode:
                    open_rgb(data, pixel_limit=self.dataset.pixel_limit)
                if row.claimed:
                    seen = header_row(row.path, row.stamp, lambda length: data[:length])
                    row = replace(seen, caption=row.caption, caption_stamp=row.caption_stamp)
                return replace(row, digest=hashlib.sha256(data).hexdigest())
            except Rejected as error:
                return error
            except OSError as error:
                return Rejected("unreadable", error.strerror or str(error))

        read: dict[str, Row] = {}
        unusable: list[LeftOut] = []
        most = self.dataset.entry.max_workers
        workers = threads(most) if decode else self.dataset.place.readers(most)
        for item, found in ahead(
            unknown,
            digest,
            workers=workers,
            limit=4 * workers,
            cost=lambda item: _bytes_of(item.sample.stamp) + decode * item.sample.size.area * BYTES_PER_PIXEL,
            most_cost=MOST_BYTES_READ,
        ):
            if isinstance(found, Row):
                read[item.sample.path] = found
            else:
                unusable.append(LeftOut(item.sample.path, found.reason, found.detail))
        self.index.put(read.values())
        unfit = self._learn(read)
        self.leave_out(unusable)
        self.leave_out(unfit, remember=False)  # the rows say what is wrong for good; the rest may do with other options
        return len(unknown)

    def _learn(self, rows: Mapping[str, Row]) -> list[LeftOut]:
        """Takes digests, and sizes that a table had wrong, from rows; returns the images that do not fit any more."""
        unfit: list[LeftOut] = []
        for place, (sample, placement) in enumerate(self.items):
            if (row := rows.get(sample.path)) is None:
                continue
            size, now = Size(row.height, row.width), placement
            if size != sample.size or row.reason:
                self.mended += [] if row.reason else [f"{sample.path} is {size}, not {sample.size}"]
                found = placed(self.dataset, row)
                if isinstance(found, LeftOut):
                    unfit.append(found)
                else:
                    now = found
            self.items[place] = Placed(replace(sample, digest=row.digest, size=size), now)
        return unfit

    def leave_out(self, found: Sequence[LeftOut], remember: bool = True) -> None:
        """Takes images out of the run and lists them; `remember` spares the next run to find the same."""
        if not found:
            return
        paths = {item.path for item in found}
        self.scan.items = [item for item in self.items if item.sample.path not in paths]
        self.scan.left_out += found
        if remember:
            rows = self.index.rows()
            self.index.put(replace(rows[i.path], reason=i.reason, detail=i.detail) for i in found if i.path in rows)
        write_rejected(self.dataset, self.scan.left_out)

    def _sample_marks(self) -> dict[str, str]:
        """A hash of each sample by path: content, placement, captions."""
        marks = {}
        for sample, placement in sorted(self.items, key=lambda item: item.sample.id):
            text = json.dumps([sample.digest, placed_as(placement), list(sample.captions)], separators=(",", ":"))
            marks[sample.path] = hashlib.sha256(text.encode()).hexdigest()
        return marks

    def describe(self) -> dict[str, Any]:
        """Plain data for checkpoints, manifests and reports. Equal fingerprints mean equal batches."""
        entry, marks = self.dataset.entry, self._sample_marks()
        # What a resume would meet in another order, or weigh otherwise, counts as another dataset.
        ways = [self.batch_size, self.repeats, entry.probability, entry.loss_weight, entry.is_regularisation_data]
        fingerprint = hashlib.sha256(json.dumps([self.id, ways, list(marks.items())]).encode()).hexdigest()
        upscaled = sum(enlargement(item.sample.size, item.placement.resize) > 0 for item in self.items)
        return {
            "id": self.id,
            "fingerprint": fingerprint,
            "images": len(self.items),
            "excluded": self.scan.reasons(),
            "beyond_subset": self.scan.beyond_subset,
            "upscaled": upscaled,
            "buckets": {bucket: len(items) for bucket, items in self.buckets().items()},
            "caption_dropout_probability": entry.caption_dropout_probability,
            # So that a later start can name the pictures that changed.
            "samples": {path: mark[:12] for path, mark in marks.items()} if len(marks) <= MOST_MARKS else {},
            "repeats": self.repeats,
            "batch_size": self.batch_size,
        }


def _bytes_of(stamp: str) -> int:
    head = stamp.partition("-")[0]
    return int(head) if head.isdigit() else 0


def placed_as(placement: Placement) -> str:
    """A placement as text, for addresses and fingerprints."""
    (high, wide), (top, left), (height, width) = placement.resize, placement.crop, placement.bucket
    return f"{wide}x{high}+{left}+{top}/{width}x{height}"


@dataclass
class Library:
    """Every dataset of the run."""

    shelves: list[Shelf]
    options: Data
    accumulation: int
    ranks: int

    def pools(self) -> list[Pool]:
        """What the plan of an epoch is made from."""
        return [shelf.pool() for shelf in self.shelves]

    def sizes(self) -> list[Size]:
        """Every distinct size of the images as they are trained on, in pixels, sorted."""
        return sorted({item.placement.bucket for shelf in self.shelves for item in shelf.items})

    def captions(self) -> list[str]:
        """Every distinct caption, sorted, with the empty one."""
        return sorted({""}.union(*(item.sample.captions for shelf in self.shelves for item in shelf.items)))

    def describe(self) -> list[dict[str, Any]]:
        return [shelf.describe() for shelf in self.shelves]

    def check(self, events: EventLog) -> None:
        """Raises repeats where that is allowed. DataError names all datasets that are too small for one step."""
        problems = []
        sound = [shelf for shelf in self.shelves if not shelf.scan.problems]  # the others have been told of
        for shelf in sound:
            need = shelf.batch_size * self.accumulation * self.ranks
            if not shelf.items or len(shelf.items) * (1 + shelf.repeats) >= need:
                continue
            repeats = smallest_repeats(len(shelf.items), need)
            if self.options.allow_dataset_oversubscription:
                message = f"dataset {shelf.id}: repeats raised from {shelf.repeats} to {repeats} to fill one step"
                shelf.repeats = repeats
                events.emit("warning", "notice", code="repeats-raised", message=message, fix="")
            else:
                problems.append(self._too_small(shelf, need, repeats))
        for shelf in sound:
            if not shelf.items:
                reasons = ", ".join(f"{reason} {count}" for reason, count in shelf.scan.reasons().items())
                message = f"dataset {shelf.id}: no image is left: {reasons}"
                fix = f"{rejected_path(shelf.dataset)} lists them"
                problems.append(Problem(message, "dataset", where=shelf.dataset.where, fix=fix))
        if problems:
            raise DataError(problems)

    def _too_small(self, shelf: Shelf, need: int, repeats: int) -> Problem:
        images, have = len(shelf.items), len(shelf.items) * (1 + shelf.repeats)
        factors = f"train_batch_size {shelf.batch_size} x gradient_accumulation_steps {self.accumulation}"
        return Problem(
            f"dataset {shelf.id} is too small for one step",
            "dataset",
            where=shelf.dataset.where,
            details=(
                f"have  {images} images x (1 + repeats {shelf.repeats}) = {have}",
                f"need  {factors} x ranks {self.ranks} = {need}",
                f'set "repeats": {repeats} (the smallest that works), or allow_dataset_oversubscription: true,',
                "or add images, or lower the batch size, the accumulation or the number of GPUs",
            ),
            keys=("repeats",),
        )

    def close(self) -> None:
        for shelf in self.shelves:
            shelf.index.close()


def index_path(dataset: ImageSet) -> Path:
    """Of a dataset's index: beside its latents."""
    return dataset.cache / f"index-{dataset.id}.sqlite"


def survey(
    datasets: Datasets, options: Data, *, batch_size: int, accumulation: int, ranks: int, events: EventLog
) -> tuple[Library, list[Problem]]:
    """Scans all datasets: headers only. What stands in the way of training on them comes along, and raises nothing."""
    shelves: list[Shelf] = []
    problems: list[Problem] = []
    for dataset in datasets.images:
        index = Index(index_path(dataset))
        try:
            source = dataset.place.source()
            found = scan(dataset, source, index)
        except (DataError, ConfigError, AccessError, RemoteError) as error:
            problems += [replace(problem, where=problem.where or dataset.where) for problem in error.problems]
            index.close()
            continue
        problems += found.problems
        size = dataset.entry.train_batch_size or batch_size
        shelf = Shelf(dataset, source, index, found, size, dataset.entry.repeats)
        shelves.append(shelf)
        _report(shelf, events)
    library = Library(shelves, options, accumulation, ranks)
    try:
        library.check(events)
    except DataError as error:
        problems += error.problems
    return library, problems


def open_library(
    datasets: Datasets, options: Data, *, batch_size: int, accumulation: int, ranks: int, events: EventLog
) -> Library:
    """All datasets, scanned and fit to train on. DataError (exit 3) carries the problems of all of them."""
    library, problems = survey(
        datasets, options, batch_size=batch_size, accumulation=accumulation, ranks=ranks, events=events
    )
    if problems:
        library.close()
        raise DataError(problems)
    return library


def _report(shelf: Shelf, events: EventLog) -> None:
    for notice in shelf.scan.notices:
        events.emit("warning", "notice", code="dataset", message=notice, fix="")
    report = {
        "files": shelf.scan.num_files,
        "headers_read": shelf.scan.headers_read,
        "beyond_subset": shelf.scan.beyond_subset,
        "list": str(rejected_path(shelf.dataset)) if shelf.scan.left_out else None,
    }
    buckets: Mapping[str, int] = {bucket: len(items) for bucket, items in shelf.buckets().items()}
    excluded = shelf.scan.reasons()
    events.emit(
        "dataset.report", dataset=shelf.id, images=len(shelf.items), excluded=excluded, buckets=buckets, report=report
    )
