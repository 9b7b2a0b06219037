"""The plan of an epoch: which samples meet in which batch, in which order. Pure, and the same on every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import NamedTuple

from simpletuner.diffusion import draw


@dataclass(frozen=True)
class Pool:
    """One dataset as the plan sees it."""

    id: str
    buckets: Mapping[str, Sequence[str]]  # name of the bucket -> ids of its samples
    batch_size: int
    repeats: int = 0
    probability: float = 1.0

    @property
    def num_images(self) -> int:
        return sum(len(ids) for ids in self.buckets.values())


class WideBatch(NamedTuple):
    """What all ranks take at one micro-batch: one dataset, one bucket. Rank r takes every `ranks`-th from r."""

    dataset: str
    bucket: str
    ids: tuple[str, ...]


@dataclass(frozen=True)
class EpochPlan:
    """The micro-batches of one epoch in order."""

    batches: tuple[WideBatch, ...]
    doubles: int  # samples that top up short batches
    batches_of: Mapping[str, int] = field(default_factory=dict)  # by dataset

    @cached_property
    def digest(self) -> str:
        """sha256 over the whole plan: equal on all ranks, machines and versions."""
        hasher = hashlib.sha256()
        for batch in self.batches:
            hasher.update("\0".join((batch.dataset, batch.bucket, *batch.ids, "\n")).encode())
        return hasher.hexdigest()


def _rank_of(address: str) -> bytes:
    """Sort key of an address: its sha256, written as draw() writes it."""
    return hashlib.sha256(f"simpletuner/1|{address}".encode()).digest()


def _stream(pool: Pool, bucket: str, seed: int, epoch: int) -> list[str]:
    """The ids of a bucket, once per pass, each pass in its own order."""
    found: list[str] = []
    for one_pass in range(1 + pool.repeats):
        prefix = f"order|{seed}|{epoch}|{pool.id}|{bucket}|{one_pass}|"
        found += [id for _, id in sorted((_rank_of(prefix + id), id) for id in pool.buckets[bucket])]
    return found


def _wide_batches(pool: Pool, seed: int, epoch: int, ranks: int) -> tuple[list[WideBatch], int]:
    """(all wide batches of one dataset in their order, number of doubles)."""
    width = pool.batch_size * ranks
    ordered: list[tuple[bytes, WideBatch]] = []
    doubles = 0
    for bucket in sorted(pool.buckets):
        stream = _stream(pool, bucket, seed, epoch)
        if not stream:
            continue
        missing = -len(stream) % width
        doubles += missing
        stream += [stream[i % len(stream)] for i in range(missing)]
        for number, start in enumerate(range(0, len(stream), width)):
            key = _rank_of(f"batch|{seed}|{epoch}|{pool.id}|{bucket}|{number}")
            ordered.append((key, WideBatch(pool.id, bucket, tuple(stream[start : start + width]))))
    ordered.sort(key=lambda item: item[0])
    return [batch for _, batch in ordered], doubles


def plan_epoch(
    pools: Sequence[Pool], *, seed: int, epoch: int, ranks: int = 1, sampling: str = "auto-weighting"
) -> EpochPlan:
    """The plan of epoch `epoch` (from 1): every image is met 1 + repeats times, plus top-ups (data.md section 9)."""
    waiting: dict[str, list[WideBatch]] = {}
    weights: dict[str, float] = {}
    doubles = 0
    for pool in pools:
        batches, more = _wide_batches(pool, seed, epoch, ranks)
        doubles += more
        if batches:
            waiting[pool.id] = batches[::-1]  # taken from the end
            weights[pool.id] = pool.probability * (len(batches) if sampling == "auto-weighting" else 1)
    counts = {id: len(batches) for id, batches in waiting.items()}
    plan: list[WideBatch] = []
    while waiting:
        chosen = _draw_dataset(list(waiting), weights, (seed, epoch, len(plan)))
        plan.append(waiting[chosen].pop())
        if not waiting[chosen]:
            del waiting[chosen]
    return EpochPlan(tuple(plan), doubles, counts)


def _draw_dataset(ids: Sequence[str], weights: Mapping[str, float], address: tuple[int, int, int]) -> str:
    if len(ids) == 1:
        return ids[0]
    rest = draw.uniform("dataset", *address) * sum(weights[id] for id in ids)
    for id in ids:
        rest -= weights[id]
        if rest < 0:
            return id
    return ids[-1]  # the sum was rounded


class Share(NamedTuple):
    """What one bucket brings to an epoch."""

    batches: int  # micro-batches, each met by all ranks
    samples: int
    doubles: int  # samples that top up its last batch


def shares(pool: Pool, ranks: int = 1) -> dict[str, Share]:
    """By bucket, what a dataset brings to an epoch; known without planning it."""
    width, found = pool.batch_size * ranks, {}
    for bucket, ids in pool.buckets.items():
        samples = len(ids) * (1 + pool.repeats)
        batches = ceil(samples / width)
        found[bucket] = Share(batches, samples, batches * width - samples)
    return found


def num_batches(pool: Pool, ranks: int = 1) -> int:
    """Micro-batches of one dataset in an epoch."""
    return sum(share.batches for share in shares(pool, ranks).values())


def batches_per_epoch(pools: Sequence[Pool], ranks: int = 1) -> int:
    """Micro-batches of one epoch over all datasets."""
    return sum(num_batches(pool, ranks) for pool in pools)


def rank_slice(batch: WideBatch, first: int, rank: int, ranks: int) -> Iterator[tuple[str, int]]:
    """(id, number of the sample in the run) of one rank; `first` samples were met before this wide batch."""
    for place in range(rank, len(batch.ids), ranks):
        yield batch.ids[place], first + place


def smallest_repeats(num_images: int, need: int) -> int:
    """The smallest repeats with which a dataset of `num_images` fills one step of `need` samples."""
    return max(0, ceil(need / num_images) - 1)
