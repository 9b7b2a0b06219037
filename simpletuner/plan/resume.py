"""Which checkpoint a run goes on from, what is left to do, and what changed since it was saved. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from simpletuner import publishing
from simpletuner.adapters.kinds import KINDS
from simpletuner.config import Config
from simpletuner.data.library import Library
from simpletuner.errors import Problem
from simpletuner.models.options import Model
from simpletuner.training import drift, manifest
from simpletuner.training.checkpoint import Checkpoints
from simpletuner.training.options import Training

AFRESH = ("none", "never")
MOST_BYTES_READ = 10**9  # by a plan, of a checkpoint or of pictures; the start of the run reads any number


@dataclass(frozen=True)
class Resume:
    """Where a run would begin. Without a checkpoint that is step 0."""

    checkpoint: str | None
    step: int
    complete: bool  # the result is there already, and nothing is left to do
    moved: tuple[str, ...]  # checkpoints that a start would set aside
    differences: tuple[Problem, ...]  # an error among them: the run cannot go on from there


def step_of(checkpoint: Path) -> int:
    return int(json.loads((checkpoint / "state/trainer.json").read_text("utf-8"))["step"])


def differences(config: Config, library: Library, checkpoint: Path) -> list[Problem]:
    """What changed in configuration and data since the checkpoint, and whether a run may go on from it.

    Reads the pictures whose content is not known.
    """
    for shelf in library.shelves:
        shelf.hash()
    return changed_options(config, checkpoint) + drift.compare_datasets(
        json.loads((checkpoint / "datasets.json").read_text("utf-8")),
        library.describe(),
        allow_config_drift=config[Training].allow_config_drift,
    )


def changed_options(config: Config, checkpoint: Path) -> list[Problem]:
    training = config[Training]
    return drift.compare(
        json.loads((checkpoint / "config.resolved.json").read_text("utf-8")),
        {key: value for key, value in config.values().items() if config.applies(key)},
        allow_config_drift=training.allow_config_drift,
        i_know_what_i_am_doing=training.i_know_what_i_am_doing,
    )


def quickly_verified(folder: Path) -> list[str]:
    """What is wrong with a checkpoint, as far as it can be seen without reading gigabytes."""
    return manifest.verify(folder, read=manifest.num_bytes(folder) < MOST_BYTES_READ)


def look(config: Config, library: Library, checkpoints: Checkpoints, total: int) -> Resume:
    """Moves nothing and writes nothing. Errors are those of `Checkpoints.find`."""
    choice = config[Training].resume_from_checkpoint
    there = checkpoints.steps()
    if choice.strip().lower() in AFRESH:
        return Resume(None, 0, False, tuple(path.name for path in there.values()), ())
    folder = checkpoints.find(choice)
    if folder is None:
        return Resume(None, 0, False, (), ())
    step = step_of(folder)
    later = [path.name for number, path in there.items() if number > step and folder.parent == checkpoints.output_dir]
    kind = KINDS[config[Model].model_type]
    # The comparison reads both, so it comes last.
    complete = step >= total and publishing.equal(folder / kind.export, checkpoints.output_dir / kind.published)
    unread = sum(shelf.unread_bytes for shelf in library.shelves)
    if unread < MOST_BYTES_READ:
        found = differences(config, library, folder)
    else:
        message = f"the datasets are compared with {folder.name} when the run starts: {unread / 1e9:.0f} GB are new"
        found = [*changed_options(config, folder), Problem(message, severity="notice")]
    return Resume(folder.name, step, complete, tuple(later), tuple(found))
