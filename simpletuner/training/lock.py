"""One run per output directory: a lock file that names its holder and dies with it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from simpletuner.errors import ConfigError, DiskError, Problem
from simpletuner.events import now

BEAT_SECONDS = 10.0  # between two signs of life of the holder
DEAD_SECONDS = 60.0  # without one, the lock of another machine is void


def boot_id() -> str:
    """Changes with every start of the machine; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """When the process started, in ticks since boot: tells it from a later one with the same number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


class Lock:
    """Holds `output_dir/.lock` while open. The system drops the hold when the process ends, however it ends.

    The hold of another machine on a shared disk may be invisible from here, so the holder also touches the file every
    ten seconds. A rented machine that was killed comes back with another name: its old lock is void after a minute.
    """

    def __init__(self, output_dir: Path):
        self.path = output_dir / ".lock"
        self.taken_over = ""  # what to tell the user if the lock was that of another machine
        self._file: IO[str] | None = None
        self._released = threading.Event()

    def __enter__(self) -> Lock:
        """ConfigError names the holder if another run has the directory; a dead holder's lock is taken over."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise DiskError(
                f"{self.path.parent}: {error.strerror}", fix="give an output_dir that can be written"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read(file)
            file.close()
            raise self._held(holder, "stop that run, or give another output_dir") from None
        holder = _read(file)
        here = {"host": socket.gethostname(), "boot_id": boot_id()}
        if holder and all(holder.get(k) != v for k, v in here.items()):
            silent = self._silent_seconds()
            if silent < DEAD_SECONDS:
                file.close()
                wait = f"if it is gone, start again in {DEAD_SECONDS - silent:.0f} seconds, or delete {self.path}"
                raise self._held(holder, wait)
            self.taken_over = f"the lock of {_who(holder)} is taken over: no sign of life for {silent:.0f} seconds"
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "start": process_start(os.getpid()), "since": now(), **here}, file)
        file.flush()
        self._file = file
        threading.Thread(target=self._beat, args=(self._released,), name="lock", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        if self._file:
            self._file.seek(0)
            self._file.truncate()
            self._file.close()
            self._file = None

    def _beat(self, released: threading.Event) -> None:
        while not released.wait(BEAT_SECONDS):
            with suppress(OSError):  # a disk that is away for a moment is no reason to end
                os.utime(self.path)

    def _silent_seconds(self) -> float:
        """Since the last sign of life, by the clock of the file system: those of two machines may differ."""
        now_there = self.path.with_name(f".lock.{os.getpid()}")
        now_there.touch()
        seconds = now_there.stat().st_mtime - self.path.stat().st_mtime
        now_there.unlink()
        return seconds

    def _held(self, holder: dict[str, Any], fix: str) -> ConfigError:
        return ConfigError(f"{self.path.parent} is in use by {_who(holder)}", fix=fix)


def held(output_dir: Path) -> Problem | None:
    """That another process has the directory, without touching its lock; None if nobody alive is known to."""
    path = output_dir / ".lock"
    try:
        with path.open(encoding="utf-8") as file:
            holder, touched = _read(file), os.fstat(file.fileno()).st_mtime
    except OSError:
        return None
    if not holder:
        return None
    if (holder.get("host"), holder.get("boot_id")) == (socket.gethostname(), boot_id()):
        pid = int(holder.get("pid", 0))
        alive = process_start(pid) == holder.get("start") != ""
    else:
        alive = time.time() - touched < DEAD_SECONDS
    message = f"{output_dir} is in use by {_who(holder)}"
    return Problem(message, fix="stop that run, or give another output_dir") if alive else None


def _who(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}, since {holder.get('since', '?')}"


def _read(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        holder = json.loads(file.read() or "{}")
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}
