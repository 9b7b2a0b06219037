"""The health of one dataset: what is used, what is left out and why, and what its captions and sizes are like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from simpletuner.data.geometry import enlargement
from simpletuner.data.library import Shelf
from simpletuner.data.sampling import Share, shares
from simpletuner.data.scan import LeftOut, Placed


class Upscaled(NamedTuple):
    """A picture that has to grow."""

    path: str
    size: str  # WIDTHxHEIGHT of the file
    resize: str  # that it grows to, before the crop
    share: float  # by which its edges grow: 0.5 is half as long again


@dataclass(frozen=True)
class Captions:
    """The words of a dataset."""

    strategy: str
    texts: int  # distinct, over all images
    alternatives: int  # images with more than one caption
    without: tuple[str, ...]  # images that are left out because they have none
    empty: int  # images whose caption is the empty text
    repeated: tuple[tuple[str, int], ...]  # (caption, images that have it), most images first
    longest: tuple[str, str]  # (path, caption); empty texts if there is no image


@dataclass(frozen=True)
class Health:
    """What there is to know of a dataset before training on it."""

    id: str
    folder: str
    found: int  # image files
    used: int
    repeats: int
    batch_size: int
    regularisation: bool
    left_out: tuple[LeftOut, ...]
    beyond_subset: int  # usable, but outside max_num_samples
    buckets: dict[str, int]  # images by WIDTHxHEIGHT, most images first
    shares: dict[str, Share]  # of the same buckets, in an epoch
    captions: Captions
    copies: tuple[tuple[str, ...], ...]  # paths of files with the same bytes
    upscaled: tuple[Upscaled, ...]  # the one that grows most first

    @property
    def samples(self) -> int:
        return sum(share.samples for share in self.shares.values())

    @property
    def batches(self) -> int:
        return sum(share.batches for share in self.shares.values())

    @property
    def doubles(self) -> int:
        return sum(share.doubles for share in self.shares.values())

    def reasons(self) -> dict[str, list[LeftOut]]:
        """The images left out, by reason, the most common first."""
        found: dict[str, list[LeftOut]] = {}
        for item in self.left_out:
            found.setdefault(item.reason, []).append(item)
        return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))

    def record(self) -> dict[str, Any]:
        """Plain data for --json."""
        record = asdict(self) | {"samples": self.samples, "batches": self.batches, "doubles": self.doubles}
        record["buckets"] = {
            bucket: {"images": images, **self.shares[bucket]._asdict()} for bucket, images in self.buckets.items()
        }
        record["left_out"] = [item._asdict() for item in self.left_out]
        record["upscaled"] = [item._asdict() for item in self.upscaled]
        del record["shares"]
        return record


def examine(shelf: Shelf, ranks: int = 1) -> Health:
    """Reads no file. Copies are known of the files that have been read; `shelf.hash()` reads the rest."""
    entry, left_out = shelf.dataset.entry, shelf.scan.left_out
    return Health(
        id=shelf.id,
        folder=str(shelf.dataset.place),
        found=len(shelf.items) + len(left_out) + shelf.scan.beyond_subset,
        used=len(shelf.items),
        repeats=shelf.repeats,
        batch_size=shelf.batch_size,
        regularisation=entry.is_regularisation_data,
        left_out=tuple(left_out),
        beyond_subset=shelf.scan.beyond_subset,
        buckets={bucket: len(items) for bucket, items in shelf.buckets().items()},
        shares=shares(shelf.pool(), ranks),
        captions=_captions(entry.caption_strategy, shelf.items, left_out),
        copies=_copies(shelf.items),
        upscaled=tuple(sorted(_upscaled(shelf.items), key=lambda item: -item.share)),
    )


def _captions(strategy: str, items: Sequence[Placed], left_out: Sequence[LeftOut]) -> Captions:
    counts = Counter(caption for sample, _ in items for caption in sample.captions)
    every = [(sample.path, caption) for sample, _ in items for caption in sample.captions]
    shared = [] if strategy == "instanceprompt" else [pair for pair in counts.most_common() if pair[0] and pair[1] > 1]
    return Captions(
        strategy=strategy,
        texts=len(counts),
        alternatives=sum(len(sample.captions) > 1 for sample, _ in items),
        without=tuple(item.path for item in left_out if item.reason == "no-caption"),
        empty=counts.get("", 0),
        repeated=tuple(shared),
        longest=max(every, key=lambda pair: len(pair[1]), default=("", "")),
    )


def _copies(items: Iterable[Placed]) -> tuple[tuple[str, ...], ...]:
    same: dict[str, list[str]] = {}
    for sample, _ in items:
        if sample.digest:
            same.setdefault(sample.digest, []).append(sample.path)
    return tuple(tuple(paths) for paths in same.values() if len(paths) > 1)


def _upscaled(items: Iterable[Placed]) -> Iterable[Upscaled]:
    for sample, placement in items:
        share = enlargement(sample.size, placement.resize)
        if share > 0:
            yield Upscaled(sample.path, str(sample.size), str(placement.resize), share)
