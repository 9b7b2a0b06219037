"""Which checkpoints of a run stay and which go, for the trainer and for the command line alike. No torch."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from simpletuner.errors import ConfigError, DiskError
from simpletuner.training import manifest

PIN = "PINNED"  # an empty file in a checkpoint: it is never deleted. No part of the manifest, and it moves along
LEFT_OVER = (".broken-*", ".incomplete-*", ".deleting-*")  # set aside, half written, half deleted


@dataclass(frozen=True)
class Kept:
    """One checkpoint as it lies on the disk."""

    step: int
    path: Path
    saved: float  # seconds since the epoch
    num_bytes: int
    reason: str  # why it was saved; empty if its manifest cannot be read
    problems: tuple[str, ...]  # what is wrong with it, by its manifest
    pinned: bool

    @property
    def valid(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class Doomed:
    """A folder that prune removes, and why."""

    path: Path
    num_bytes: int
    why: str


def survey(output_dir: Path) -> list[Kept]:
    """Every checkpoint of a run, oldest step first. Each file is read and compared with its manifest."""
    return [look(path) for path in manifest.steps(output_dir).values()]


def look(path: Path) -> Kept:
    """One checkpoint, compared with its manifest."""
    match = manifest.NAME.fullmatch(path.name)
    facts, file = manifest.facts(path), path / manifest.FILE
    return Kept(
        step=int(match[1]) if match else int(facts.get("step", -1)),
        path=path,
        saved=(file if file.exists() else path).stat().st_mtime,  # the manifest is written last
        num_bytes=manifest.num_bytes(path),
        reason=str(facts.get("reason", "")),
        problems=tuple(manifest.verify(path)),
        pinned=pinned(path),
    )


def newest_valid(kept: Sequence[Kept]) -> Kept | None:
    """The one that `latest` means."""
    return next((one for one in reversed(kept) if one.valid), None)


def surplus(steps: Mapping[int, Path], limit: int, every: int) -> list[Path]:
    """Those beyond the newest `limit`, oldest first; 0 keeps all. Pinned ones and multiples of `every` do not count."""
    counted = [path for step, path in sorted(steps.items()) if not (pinned(path) or (every and step % every == 0))]
    return counted[: max(0, len(counted) - limit)] if limit else []


def prunable(output_dir: Path, kept: Sequence[Kept], limit: int, every: int) -> list[Doomed]:
    """What prune removes: valid checkpoints beyond the limit, damaged ones, and what was set aside.

    The newest valid one and the pinned ones stay. DiskError if there are checkpoints and none is valid: a damaged one
    may then be all that is left of a run.
    """
    newest = newest_valid(kept)
    if kept and newest is None:
        fix = "put a good copy back, or delete the folders yourself"
        raise DiskError(
            f"no checkpoint in {output_dir} is valid, so nothing is removed",
            fix=fix,
            details=[f"{one.path.name}: {one.problems[0]}" for one in kept],
        )
    beyond = {*surplus({one.step: one.path for one in kept if one.valid}, limit, every)}
    found = []
    for one in kept:
        if one is newest or one.pinned:
            continue
        if not one.valid:
            found.append(Doomed(one.path, one.num_bytes, f"damaged: {one.problems[0]}"))
        elif one.path in beyond:
            found.append(Doomed(one.path, one.num_bytes, "old"))
    return found + left_over(output_dir)


def left_over(output_dir: Path) -> list[Doomed]:
    """What failed saves and broken-off deletions left behind."""
    paths = sorted(path for pattern in LEFT_OVER for path in output_dir.glob(pattern))
    found = [path for path in paths if path.is_dir() and not pinned(path)]
    return [Doomed(path, manifest.num_bytes(path), "set aside after a failure") for path in found]


def pinned(folder: Path) -> bool:
    return (folder / PIN).exists()


def pin(folder: Path) -> None:
    """Protects a checkpoint from every deletion, also while its run goes on. ConfigError if it has just gone."""
    try:
        (folder / PIN).touch()
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} does not exist any more", fix="pin one that is there") from error


def unpin(folder: Path) -> None:
    (folder / PIN).unlink(missing_ok=True)


def delete(folder: Path) -> None:
    """Removes a folder whole: first its name, so that nobody takes a half for the whole, then what is in it.

    OSError if that fails.
    """
    if folder.name.startswith("."):  # no checkpoint's name
        shutil.rmtree(folder)
        return
    going = folder.parent / f".deleting-{folder.name}-{uuid.uuid4().hex}"
    os.rename(folder, going)
    shutil.rmtree(going)
