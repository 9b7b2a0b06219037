"""Bytes on the disk that a run will take, and whether they are there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from simpletuner.config import Config
from simpletuner.errors import Problem
from simpletuner.machine import disk_free, existing
from simpletuner.models.options import Model
from simpletuner.models.places import hub_cache
from simpletuner.optim.table import numbers_kept
from simpletuner.plan.caches import Cache
from simpletuner.training.options import Saving, Training
from simpletuner.validation.options import Validation
from simpletuner.validation.shots import Shot

PIXEL_BYTES = {"png": 1.6, "webp": 0.25, "jpeg": 0.35}  # of a photograph, about
COMPARED = 2  # pictures beside each other, kept besides the sample itself
SHEET_BYTES = 20_000  # of one picture on a contact sheet


@dataclass(frozen=True)
class Volume:
    """One disk, by a folder on it."""

    folder: str
    needed: int
    free: int

    @property
    def enough(self) -> bool:
        return self.needed <= self.free


@dataclass(frozen=True)
class Disk:
    """What a run adds, in bytes; all of it are estimates."""

    download: int
    caches: int
    checkpoint: int  # one
    num_checkpoints: int  # at once at most
    images: int
    result: int
    offloaded: int  # weights that wait there while the run lasts
    volumes: tuple[Volume, ...]

    @property
    def needed(self) -> int:
        return (
            self.download
            + self.caches
            + self.checkpoint * self.num_checkpoints
            + self.images
            + self.result
            + self.offloaded
        )


def checkpoint_bytes(weight_bytes: int, copies: int, optimizer: str) -> int:
    """An estimate: the weights, twice unless the export is the exact state as well, and the optimizer's state."""
    return round(weight_bytes * (copies + numbers_kept(optimizer)))


def at_once(saving: Saving, num_saves: int, there: int) -> int:
    """Checkpoints that come to those that are there, at most: one more than are kept lies there while it is written."""
    limit = saving.checkpoints_total_limit
    return max(0, min(num_saves, limit + 1 - there)) if limit else num_saves


def image_bytes(options: Validation, shots: Iterable[Shot], times: int) -> int:
    """The base model's, then at each of `times` the samples, each beside the base model's, and a sheet of all."""
    sizes = [shot.size.area * PIXEL_BYTES[options.validation_image_format] for shot in shots]
    base = 0 if options.disable_benchmark else sum(sizes)
    return round(base + times * sum(size * (1 + COMPARED) + SHEET_BYTES for size in sizes))


def disk(
    config: Config,
    *,
    download: int,
    caches: Sequence[Cache],
    checkpoint: int,
    num_checkpoints: int,
    images: int,
    result: int,
    offloaded: tuple[Path, int] | None = None,
    free: Callable[[Path], int] = disk_free,
) -> Disk:
    output_dir = config[Training].output_dir
    wanted = [(hub_cache(config[Model].cache_dir), download)]
    wanted += [(cache.folders[0], cache.bytes_to_make) for cache in caches if cache.folders]
    wanted.append((output_dir, checkpoint * num_checkpoints + images + result))
    wanted += [offloaded] if offloaded else []
    needed: dict[int, list[tuple[Path, int]]] = {}
    for folder, size in wanted:
        needed.setdefault(_device(folder), []).append((folder, size))
    volumes = [
        Volume(str(places[-1][0]), sum(size for _, size in places), free(places[-1][0])) for places in needed.values()
    ]
    made = sum(cache.bytes_to_make for cache in caches)
    return Disk(
        download, made, checkpoint, num_checkpoints, images, result, offloaded[1] if offloaded else 0, tuple(volumes)
    )


def problems(found: Disk, output_dir: Path) -> list[Problem]:
    """Errors of a disk that is too small, and of an output folder that cannot be written."""
    wrong = []
    for volume in found.volumes:
        if not volume.enough:
            need, free = f"about {volume.needed / 1e9:.1f} GB are needed", f"{volume.free / 1e9:.1f} are free"
            fix = "free some space, or keep fewer checkpoints (checkpoints_total_limit)"
            wrong.append(Problem(f"{volume.folder}: {need} and {free}", "disk", fix=fix))
    if not os.access(existing(output_dir), os.W_OK):
        message = f"{output_dir}: it cannot be written"
        wrong.append(Problem(message, "disk", fix="give an output_dir that can be written", keys=("output_dir",)))
    return wrong


def _device(folder: Path) -> int:
    return existing(folder).stat().st_dev
