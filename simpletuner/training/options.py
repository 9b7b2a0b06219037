"""How long a run trains, from which random seed, how it resumes, computes and saves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

from simpletuner.schema import Basic, Expert, Former, Ge, Group, Le, Meaning, Unit

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}  # as on the label of a disk


def num_bytes(text: str) -> int:
    """ "100G" -> 100,000,000,000. ValueError for anything else than a number and an optional K, M, G or T."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text.lower())
    if not match:
        raise ValueError("a size is a number with K, M, G or T, such as 100G")
    return int(float(match[1]) * UNITS[match[2]])


def _size(text: str | None) -> str | None:
    if text is not None:
        num_bytes(text)
    return text


class Training(Group, title="Training"):
    output_dir: Annotated[Path, Basic] = Path("simpletuner-results")
    """Where checkpoints, validation images and logs go; a full path is best, and one folder holds one run."""

    max_train_steps: Annotated[int, Ge(0), Unit("steps"), Basic] = 0
    """Length of the run in optimizer steps; give this or num_train_epochs, the other stays 0."""

    num_train_epochs: Annotated[int, Ge(0), Le(1000), Unit("epochs"), Basic] = 0
    """Length of the run in passes over the data; give this or max_train_steps, the other stays 0."""

    train_batch_size: Annotated[int, Ge(1), Le(128), Basic] = 1
    """Images in one forward pass; larger is steadier and needs memory, and small sets are best served by 1."""

    gradient_accumulation_steps: Annotated[int, Ge(1)] = 1
    """Forward passes for one update; 2 gives a steadier gradient and takes twice the time per update."""

    seed: Annotated[int, Ge(-1), Le(2147483647)] = 42
    """Start of every random draw; the same seed repeats a run, and -1 draws one, shows it and records it."""

    resume_from_checkpoint: Annotated[str, Basic] = "latest"
    """latest, none, a checkpoint's name or a path; latest is the newest valid one, and damaged ones are named."""

    allow_config_drift: Annotated[bool, Expert] = False
    """Lets a resume go on although batch, data, seed, loss or optimizer changed; the run is then no longer exact."""

    nonfinite_action: Annotated[
        Literal["rollback", "stop", "skip"],
        Expert,
        Meaning(
            {
                "rollback": "drops up to 3 updates in a row, then goes back once, to the last checkpoint at half rate",
                "stop": "ends with exit code 6 at once",
                "skip": "drops updates as long as they are not 3 in a row",
            }
        ),
    ] = "rollback"
    """What a NaN or Inf in loss or gradient leads to; going on hides a fault in the data, stopping costs the night."""

    deterministic: Annotated[bool, Expert] = False
    """Deterministic kernels: a run repeats bit for bit on one machine, and is slower."""

    stop_timeout: Annotated[float, Ge(1), Unit("seconds"), Expert] = 60.0
    """Time for the emergency checkpoint after a stop signal; too short loses the steps since the last save."""

    i_know_what_i_am_doing: Annotated[bool, Expert] = False
    """Accepts a changed batch size on resume and nothing else; the run is then no longer exact."""


class Speed(Group, title="Speed"):
    mixed_precision: Annotated[
        Literal["bf16", "fp16", "no"],
        Basic,
        Meaning({"bf16": "fast, and steady", "fp16": "for cards without bf16, with loss scaling", "no": "fp32"}),
    ] = "bf16"
    """Precision of the computation; "no" is fp32, which is slow on a GPU, not better, and the fastest on most CPUs."""

    disable_tf32: Annotated[bool, Expert] = False
    """Exact fp32 matrix products on NVIDIA cards; slower, with no visible gain."""

    torch_num_threads: Annotated[int | None, Ge(1), Unit("threads"), Expert] = None
    """CPU threads of PyTorch; unset means 8 or the number of cores if that is less, and more rarely help."""


class Saving(Group, title="Saving"):
    checkpoint_step_interval: Annotated[int, Ge(1), Unit("steps"), Basic, Former("checkpointing_steps")] = 500
    """A complete, resumable checkpoint every n steps; a crash costs at most that many, each save a few seconds."""

    checkpoint_epoch_interval: Annotated[int | None, Ge(1), Unit("epochs")] = None
    """A checkpoint every n whole epochs, besides those of the step interval."""

    checkpoints_total_limit: Annotated[int, Ge(0), Basic, Former("save_total_limit")] = 5
    """How many checkpoints are kept, 0 for all; the newest valid one always stays, older ones cost disk."""

    checkpoints_keep_every: Annotated[int, Ge(0), Unit("steps"), Expert] = 0
    """Keeps every checkpoint at a multiple of n steps for ever, outside of the limit; 0 is off."""

    disk_low_threshold: Annotated[str | None, AfterValidator(_size), Expert] = None
    """Free space wanted before a save, such as 100G; 2.2 times the last checkpoint is always wanted as well."""

    disk_low_action: Annotated[
        Literal["continue", "wait", "stop"],
        Expert,
        Meaning(
            {
                "continue": "skips the save, warns once, and tries again every minute",
                "wait": "pauses the training until there is space",
                "stop": "ends with exit code 7",
            }
        ),
    ] = "continue"
    """What a lack of disk space leads to; the old checkpoint stays either way, and the final save always waits."""
