"""From the plan to batches: reads latents and texts ahead of the trainer, in an order that a resume repeats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from simpletuner.data.ahead import ahead, threads
from simpletuner.data.cache import TensorCache
from simpletuner.data.fill import Latents
from simpletuner.data.keys import text_key
from simpletuner.data.library import Library
from simpletuner.data.options import Data
from simpletuner.data.sampling import EpochPlan, WideBatch, plan_epoch, rank_slice
from simpletuner.diffusion import draw
from simpletuner.types import Batch, Progress

TEXTS_IN_MEMORY = 16  # a text of FLUX.1 is 4 MiB; datasets with few captions never read twice


class Turn(NamedTuple):
    """One micro-batch of the run."""

    epoch: int
    position: int  # from 0
    batch: WideBatch
    first: int  # samples met before it, over all ranks


class Loader:
    """Endless batches of one rank. `next` advances `progress` as it hands a batch over, not as it reads ahead."""

    def __init__(
        self,
        library: Library,
        latents: Mapping[str, Latents],
        texts: TensorCache,
        *,
        options: Data,
        seed: int,
        progress: Progress,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.latents, self.texts, self.options = latents, texts, options
        self.seed, self.progress, self.rank, self.ranks = seed, progress, rank, ranks
        self._pools = library.pools()
        self._entries = {shelf.id: shelf.dataset.entry for shelf in library.shelves}
        self._samples = {item.sample.id: item for shelf in library.shelves for item in shelf.items}
        self._plans: dict[int, EpochPlan] = {}
        self._text = lru_cache(TEXTS_IN_MEMORY)(self._read_text)
        self._batches: Iterator[tuple[Turn, Batch]] | None = None

    def plan(self, epoch: int) -> EpochPlan:
        """The plan of an epoch, the same on every rank."""
        if epoch not in self._plans:
            sampling = self.options.data_backend_sampling
            plan = plan_epoch(self._pools, seed=self.seed, epoch=epoch, ranks=self.ranks, sampling=sampling)
            # Reading ahead may be one epoch further than the trainer; older plans are done with.
            self._plans = {e: p for e, p in self._plans.items() if e >= self.progress.epoch} | {epoch: plan}
        return self._plans[epoch]

    def batches_in_epoch(self, epoch: int) -> int:
        return len(self.plan(epoch).batches)

    def next(self) -> Batch:
        """The next batch; `progress` then counts it. BadItem (exit 3) if a cache item was damaged meanwhile."""
        if self._batches is None:
            self._batches = self._read_ahead()
        turn, batch = next(self._batches)
        progress = self.progress
        progress.epoch, progress.position = turn.epoch, turn.position + 1
        progress.samples = turn.first + len(turn.batch.ids)
        return batch

    def close(self) -> None:
        """Stops reading ahead. The next call of `next` starts again from `progress`."""
        if self._batches is not None:
            self._batches.close()  # type: ignore[attr-defined]
            self._batches = None

    def _read_ahead(self) -> Iterator[tuple[Turn, Batch]]:
        turns = self._turns(self.progress.epoch, self.progress.position, self.progress.samples)
        if not self.options.dataloader_prefetch:
            return ((turn, self._batch(turn)) for turn in turns)
        length = self.options.dataloader_prefetch_qlen
        return ahead(turns, self._batch, workers=min(length, threads(self.options.max_workers)), limit=length)

    def _turns(self, epoch: int, position: int, samples: int) -> Iterator[Turn]:
        while True:
            batches = self.plan(epoch).batches
            for place in range(position, len(batches)):
                yield Turn(epoch, place, batches[place], samples)
                samples += len(batches[place].ids)
            epoch, position = epoch + 1, 0

    def _batch(self, turn: Turn) -> Batch:
        dataset = turn.batch.dataset
        entry, latents = self._entries[dataset], self.latents[dataset]
        ids, numbers = zip(*rank_slice(turn.batch, turn.first, self.rank, self.ranks), strict=True)
        captions = tuple(self._caption(id, number) for id, number in zip(ids, numbers, strict=True))
        texts = [self._text(caption) for caption in captions]
        return Batch(
            ids=ids,
            latents=_stacked([latents.read(id) for id in ids]),  # (B, C, H, W), bf16
            text={name: _stacked([text[name] for text in texts]) for name in texts[0]},
            weight=torch.full((len(ids),), entry.loss_weight),
            dataset=dataset,
            numbers=numbers,
            captions=captions,
            parent_target=entry.is_regularisation_data,
        )

    def _caption(self, id: str, number: int) -> str:
        """The caption of this use: one draw decides dropout, another the variant."""
        sample = self._samples[id].sample
        if draw.uniform("dropout", self.seed, number) < self._entries[sample.dataset].caption_dropout_probability:
            return ""
        return sample.captions[draw.integer(len(sample.captions), "caption", self.seed, number)]

    def _read_text(self, caption: str) -> dict[str, Tensor]:
        return self.texts.read(text_key(caption, self.texts.encoder))


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """(B, ...), not to be written: one alone is no copy, since a text of Flux, 4 MiB, outweighs all else in a batch."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))
