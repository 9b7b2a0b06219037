"""At which steps a run saves and makes images, as the trainer itself decides it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simpletuner.training.checkpoint import Checkpoints
from simpletuner.types import Progress
from simpletuner.validation.options import Validation
from simpletuner.validation.times import due


@dataclass(frozen=True)
class Calendar:
    """Steps after which something happens, in order; the last step of the run is among both unless images are off."""

    saves: tuple[int, ...]
    images: tuple[int, ...]


def calendar(
    checkpoints: Checkpoints, options: Validation, *, first: int, total: int, accumulation: int, batches: int
) -> Calendar:
    """Of the steps after `first` up to `total`. batches: micro-batches of an epoch."""
    saves, images = [], []
    for progress, before, after in _steps(first, total, accumulation, max(1, batches)):
        last = progress.step == total
        if last or checkpoints.due(progress.step, before, after):
            saves.append(progress.step)
        if due(options, progress, last=last, epoch_done=after > before):
            images.append(progress.step)
    return Calendar(tuple(saves), tuple(images))


def _steps(first: int, total: int, accumulation: int, batches: int) -> Iterator[tuple[Progress, int, int]]:
    """(progress after the step, whole epochs before it, whole epochs after it) of each step."""
    for step in range(first + 1, total + 1):
        met = step * accumulation
        epoch = (met - 1) // batches + 1
        progress = Progress(step, epoch, met - (epoch - 1) * batches)
        yield progress, (met - accumulation) // batches, met // batches
