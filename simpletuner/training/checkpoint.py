"""Checkpoints: written aside, hashed, renamed, only then announced; a kill at any moment leaves one that resumes."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from simpletuner import newfile
from simpletuner.errors import ConfigError, DiskError, DivergedError, SimpleTunerError
from simpletuner.events import EventLog
from simpletuner.training import manifest, upkeep
from simpletuner.training.manifest import verify
from simpletuner.training.options import Saving, num_bytes

SPACE = 2.2  # times the last checkpoint: the new one beside the old one, and a tenth
KEEP_BROKEN_SECONDS = 7 * 24 * 3600
RETRY_SECONDS = 60.0  # between tries to save after a lack of space, with disk_low_action=continue
LOOK_SECONDS = 30.0  # between looks for space, while waiting

FileAction = Callable[[Path], object]


@dataclass(frozen=True)
class Contents:
    """What a checkpoint is made of: by name, how to write and read each file or folder. No adapter is known here.

    `check` says what is wrong with what other tools read, `result`; an empty list means that it holds.
    """

    writers: Mapping[str, FileAction]
    readers: Mapping[str, FileAction]
    facts: Mapping[str, Any] = field(default_factory=dict)  # for the manifest: family, base, adapter, versions, hashes
    result: str | None = None
    check: Callable[[Path], list[str]] | None = None
    estimated_bytes: int = 0  # of the first checkpoint


def earlier_folder(output_dir: Path) -> Path:
    """A new `earlier-<n>` for what makes room: nothing that was saved is deleted or overwritten."""
    taken = [int(p.name[8:]) for p in output_dir.glob("earlier-*") if p.name[8:].isdigit()]
    home = output_dir / f"earlier-{max(taken, default=0) + 1}"
    home.mkdir()
    return home


def _not_finite(path: Path) -> str:
    """The first tensor of a safetensors file that holds NaN or Inf; empty if there is none."""
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            tensor = file.get_tensor(key)
            if tensor.is_floating_point() and not tensor.isfinite().all():
                return key
    return ""


def _failed_check(path: str, wrong: list[str], consequence: str) -> SimpleTunerError:
    return SimpleTunerError(f"{path} failed its check", details=wrong[:8], fix=f"{consequence}; please report it")


class Checkpoints:
    """The checkpoints of one output directory. Only the process that holds its lock may do more than `find` them."""

    def __init__(
        self,
        output_dir: Path,
        options: Saving,
        events: EventLog,
        contents: Contents,
        *,
        wait_ended: Callable[[], bool] = lambda: False,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
        sleep: Callable[[float], None] = time.sleep,
        verified: Callable[[Path], list[str]] = verify,
        room: Callable[[], AbstractContextManager[Any]] = nullcontext,  # made while a checkpoint is written
    ):
        self.output_dir, self.options, self.events, self.contents = output_dir, options, events, contents
        self.wait_ended, self.free_bytes, self.sleep, self.verified = wait_ended, free_bytes, sleep, verified
        self.room = room
        self.saved_step = -1  # of the newest checkpoint that this process saved or resumed from
        self._retry_at: float | None = None  # a save was skipped for lack of space
        self._warned = False
        self._announced_deletion = False

    def prepare(self) -> None:
        """Proves that the directory can be written, and clears up after a process that died while saving."""
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            probe = self.output_dir / f".probe-{uuid.uuid4().hex}"
            with probe.open("wb") as file:
                file.write(b"probe")
                file.flush()
                os.fsync(file.fileno())
            os.rename(probe, probe.with_suffix(".done"))
            probe.with_suffix(".done").unlink()
        except OSError as error:
            raise DiskError(
                f"{self.output_dir}: {error.strerror}", fix="give an output_dir that can be written"
            ) from error
        for left in self.output_dir.glob(".incomplete-*"):
            self._set_aside(left)
        for left in self.output_dir.glob(".deleting-*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in self.output_dir.glob(".broken-*"):
            if time.time() - left.stat().st_mtime > KEEP_BROKEN_SECONDS and not upkeep.pinned(left):
                shutil.rmtree(left, ignore_errors=True)

    # ---- find and restore

    def steps(self) -> dict[int, Path]:
        """All directories with a checkpoint's name, oldest step first; whether they are valid is another question."""
        return manifest.steps(self.output_dir)

    def find(self, choice: str) -> Path | None:
        """The checkpoint that `resume_from_checkpoint` means, verified; None for a fresh start.

        ConfigError if a named one is missing; DiskError if it is damaged, or if all that are there are.
        """
        if choice.strip().lower() in ("none", "never"):
            self._move_earlier(-1, "a fresh start")
            return None
        if choice.strip().lower() == "latest":
            return self._latest()
        folder = next((p for p in (self.output_dir / choice, Path(choice)) if p.is_dir()), None)
        if folder is None:
            known = ", ".join(p.name for p in self.steps().values()) or "there are none"
            raise ConfigError(f"resume_from_checkpoint: {choice} does not exist", fix=f"checkpoints here: {known}")
        if problems := self.verified(folder):
            fix = "use resume_from_checkpoint=latest for the newest valid one"
            raise DiskError(f"{folder} is damaged", fix=fix, details=problems)
        return folder

    def branch_at(self, folder: Path) -> None:
        """Moves later checkpoints aside as the run goes on from `folder`, or `latest` would find them again."""
        if folder.parent == self.output_dir and (match := manifest.NAME.fullmatch(folder.name)):
            self._move_earlier(int(match[1]), f"going back to {folder.name}")

    def _latest(self) -> Path | None:
        damaged: list[str] = []
        for folder in reversed(self.steps().values()):
            problems = self.verified(folder)
            if not problems:
                return folder
            damaged.append(f"{folder.name}: {problems[0]}")
            self.events.warn(
                "checkpoint_damaged", f"{folder.name} is passed over: {problems[0]}", "it is kept for a look"
            )
        if damaged:
            fix = "put a good copy back, or set resume_from_checkpoint=none to start again from step 0"
            raise DiskError(f"no checkpoint in {self.output_dir} is valid", fix=fix, details=damaged)
        return None

    def _move_earlier(self, beyond: int, why: str) -> None:
        """Moves the checkpoints after step `beyond` aside: the run is about to take another way."""
        folders = [folder for step, folder in self.steps().items() if step > beyond]
        if not folders:
            return
        home = earlier_folder(self.output_dir)
        for folder in folders:
            os.rename(folder, home / folder.name)
        names = ", ".join(folder.name for folder in folders)
        self.events.warn("earlier_checkpoints", f"{why}: {names} moved to {home.name}")

    def restore(self, folder: Path) -> dict[str, Any]:
        """Reads a verified checkpoint back into the parts that wrote it, and returns the trainer's own state."""
        state = json.loads((folder / "state/trainer.json").read_text("utf-8"))
        for name, read in self.contents.readers.items():
            read(folder / name)
        self.saved_step = int(state["step"])
        return state

    # ---- save

    def due(self, step: int, epochs_before: int, epochs_after: int) -> str | None:
        """The reason to save after this step, or None. Epochs are whole ones, before and after the step."""
        every = self.options.checkpoint_epoch_interval
        if every and epochs_after // every > epochs_before // every:
            return "epoch"
        retry = self._retry_at is not None and time.monotonic() >= self._retry_at
        return "interval" if retry or step % self.options.checkpoint_step_interval == 0 else None

    def postpone(self) -> None:
        """Makes the next step due instead of this one."""
        self._retry_at = time.monotonic()

    def save(self, step: int, reason: str, state: Mapping[str, Any], *, is_final: bool = False) -> Path | None:
        """Writes checkpoint-<step> and returns it; None if it could not be saved and the run may go on without it.

        DiskError if it must be saved and cannot be, or if disk_low_action says to stop.
        """
        target = self.output_dir / f"checkpoint-{step}"
        if self.saved_step == step and target.is_dir():
            return target
        needed = reason in ("final", "signal", "control")
        if not self._has_space(target, reason, needed):
            return None
        started = time.monotonic()
        folder = self.output_dir / f".incomplete-{step}-{uuid.uuid4().hex}"
        try:
            with self.room():
                wrong, hashed = self._write(folder, step, reason, state)
            if target.exists():  # damaged and passed over at the start, or it would have been resumed from
                self._set_aside(target)
            os.rename(folder, target)
            newfile.sync(self.output_dir)
        except (OSError, SafetensorError) as error:
            self._failed(target, reason, str(error))
            if needed:
                fix = "free some space or repair the disk, then start again: it resumes from the checkpoint before"
                raise DiskError(f"{target}: {error}", fix=fix) from error
            self._retry_at = time.monotonic() + RETRY_SECONDS
            return None
        self.saved_step, self._retry_at, self._warned = step, None, False
        size = manifest.num_bytes(target)
        seconds = round(time.monotonic() - started, 3)
        self.events.emit(
            "checkpoint.saved",
            path=target.name,
            reason=reason,
            bytes=size,
            seconds=seconds,
            manifest_hash=hashed,
            is_final=is_final,
        )
        if wrong:
            path = f"{target.name}/{self.contents.result}"
            self.events.emit("export.failed", "error", path=path, checks=wrong)
            raise _failed_check(path, wrong, "the training state is safe")
        self._rotate(target)
        return target

    def _write(self, folder: Path, step: int, reason: str, state: Mapping[str, Any]) -> tuple[list[str], str]:
        """Everything before the rename: (what is wrong with the result file, hash of the manifest)."""
        (folder / "state").mkdir(parents=True)
        for name, write in self.contents.writers.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write(folder / name)
        (folder / "state/trainer.json").write_text(json.dumps(dict(state), indent=1), "utf-8")
        for path in folder.rglob("*.safetensors"):
            if tensor := _not_finite(path):
                self._failed(folder, reason, f"{path.name} holds NaN or Inf in {tensor}")
                raise DivergedError(
                    f"step {step}: {tensor} is not finite; nothing was saved",
                    fix="lower learning_rate; the checkpoint before is whole",
                )
        wrong = []
        if self.contents.check and self.contents.result:
            result = folder / self.contents.result
            wrong = self.contents.check(result)
            if wrong and self.contents.result in self.contents.readers:  # nothing else holds the state
                self._failed(folder, reason, f"{result.name} failed its check")
                raise _failed_check(result.name, wrong, "nothing was saved, and the checkpoint before is whole")
            if wrong:
                os.rename(result, result.with_suffix(f".unverified{result.suffix}"))
        files = []
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            newfile.sync(path)
            name = path.relative_to(folder).as_posix()
            files.append({"name": name, "bytes": path.stat().st_size, "sha256": newfile.sha256(path)})
        identity = {
            "schema": manifest.SCHEMA,
            "run": self.events.run,
            "attempt": self.events.attempt,
            "step": step,
            "reason": reason,
        }
        listing = folder / manifest.FILE
        listing.write_text(json.dumps(identity | dict(self.contents.facts) | {"files": files}, indent=1), "utf-8")
        newfile.sync(listing)
        for inner in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
            newfile.sync(inner)
        return wrong, newfile.sha256(listing)

    def _failed(self, target: Path, reason: str, message: str, **numbers: int) -> None:
        self.events.emit("checkpoint.failed", "error", path=target.name, reason=f"{reason}: {message}", **numbers)

    def _set_aside(self, folder: Path) -> None:
        step = re.sub(r"\D*(\d+).*", r"\1", folder.name)
        aside = self.output_dir / f".broken-{step}-{uuid.uuid4().hex}"
        os.rename(folder, aside)
        os.utime(aside)  # kept for seven days from now

    # ---- space and rotation

    def _last_bytes(self) -> int:
        newest = next(reversed(self.steps().values()), None)
        return (manifest.num_bytes(newest) if newest else 0) or self.contents.estimated_bytes

    def _has_space(self, target: Path, reason: str, needed: bool) -> bool:
        """True once there is room for a save; False to skip it. Waits for the final save, or if the options say so."""
        threshold = self.options.disk_low_threshold
        want = max(int(SPACE * self._last_bytes()), num_bytes(threshold) if threshold else 0)
        while (free := self.free_bytes(self.output_dir)) < want:
            action = "wait" if reason == "final" else self.options.disk_low_action
            if not self._warned:
                self._warned = True
                self.events.emit(
                    "disk.low", "warning", path=str(target), action=action, needed_bytes=want, free_bytes=free
                )
                self._failed(target, reason, "not enough space on the disk", needed_bytes=want, free_bytes=free)
            stuck = action == "wait" and self.wait_ended()
            if action == "stop" or stuck or (needed and action != "wait"):
                message = f"{self.output_dir} has {free:,} bytes free, and a save needs {want:,}"
                raise DiskError(message, fix="free some space, then start again: it resumes from the checkpoint before")
            if action == "continue":
                self._retry_at = time.monotonic() + RETRY_SECONDS
                return False
            self.sleep(LOOK_SECONDS)
        return True

    def _rotate(self, newest: Path) -> None:
        limit = self.options.checkpoints_total_limit
        for path in upkeep.surplus(self.steps(), limit, self.options.checkpoints_keep_every):
            if path == newest:
                continue
            try:
                upkeep.delete(path)
            except OSError as error:
                self.events.warn("checkpoint_not_deleted", f"{path.name} could not be deleted: {error}")
                continue
            why = f"checkpoints_total_limit={limit}"
            self.events.emit("checkpoint.deleted", path=path.name, reason=why)
            if not self._announced_deletion:
                self._announced_deletion = True
                self.events.warn("checkpoint_rotation", f"{path.name} was deleted: {why}", "0 keeps all checkpoints")
