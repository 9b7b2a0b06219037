"""Folders on a disk: LocalSource reads a user's images, LocalStore keeps our own files."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from simpletuner import newfile
from simpletuner.errors import DataError, DiskError
from simpletuner.protocols import Listing

DIGITS = re.compile(r"(\d+)")
LEFTOVER = re.compile(r"\.tmp-(\d+)-\d+$")


def natural(path: str) -> tuple[list[str | int], bytes]:
    """Sort key for people: img2 before img10, case folded, ties by raw bytes."""
    parts = DIGITS.split(path.casefold())
    # Odd parts are digits; texts stand at the even places, so unlike kinds are never compared.
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], os.fsencode(path)


class LocalSource:
    """The files below a folder, to list and to read. Links are followed; `loops` names those that lead back up."""

    def __init__(self, root: Path):
        self.root = root
        self.loops: list[str] = []

    def list(self) -> Iterator[Listing]:
        """All files in natural order. A link that leads nowhere is listed with the stamp "gone"."""
        self.loops = []
        try:
            found = list(self._walk(self.root, "", ()))
        except OSError as error:
            raise DataError(
                f"{error.filename}: cannot be listed: {error.strerror}", fix="check the permissions"
            ) from error
        yield from sorted(found, key=lambda listing: natural(listing.path))

    def _walk(self, folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[Listing]:
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            self.loops.append(prefix.rstrip("/"))
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                path = prefix + entry.name
                if entry.is_dir():
                    yield from self._walk(folder / entry.name, path + "/", (*above, here))
                elif entry.is_file():
                    status = entry.stat()
                    yield Listing(path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")
                elif entry.is_symlink():
                    yield Listing(path, 0, "gone")

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        with (self.root / path).open("rb") as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)


class LocalStore:
    """Whole files or none: each is written aside, synced and renamed. Folders are synced every `sync_every` files."""

    _numbers = itertools.count()

    def __init__(self, root: Path, sync_every: int = 128):
        self.root = root
        self.sync_every = sync_every
        self._unsynced: list[Path] = []
        self._lock = threading.Lock()

    def list(self) -> Iterator[Listing]:
        """Every whole file, in no order."""
        for folder, _, names in os.walk(self.root):
            for name in names:
                if not LEFTOVER.search(name):
                    path = Path(folder, name)
                    status = path.stat()
                    stamp = f"{status.st_size}-{status.st_mtime_ns}"
                    yield Listing(path.relative_to(self.root).as_posix(), status.st_size, stamp)

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        with (self.root / path).open("rb") as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)

    def write(self, path: str, data: bytes) -> None:
        """DiskError if the disk is full or fails; nothing is left behind then."""
        target = self.root / path
        aside = target.with_name(f"{target.name}.tmp-{os.getpid()}-{next(self._numbers)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, target)
        except OSError as error:
            with suppress(OSError):
                aside.unlink()
            raise DiskError(
                f"{target}: cannot be written: {error.strerror}", fix="free some space, or choose another folder"
            ) from error
        with self._lock:
            self._unsynced.append(target.parent)
            due = len(self._unsynced) >= self.sync_every
        if due:
            self.sync()

    def sync(self) -> None:
        """Makes the names of all written files durable."""
        with self._lock:
            folders, self._unsynced = set(self._unsynced), []
        for folder in folders:
            newfile.sync(folder)

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def delete(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)

    def free_bytes(self) -> int | None:
        """Free space where the store lives; None means without limit."""
        place = self.root
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    def clear_leftovers(self) -> int:
        """Removes what processes that are gone have left half written; returns how many files."""
        found = list(abandoned(self.root))
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)


def abandoned(root: Path) -> Iterator[Path]:
    """The files below `root` that processes which are gone have left half written."""
    for folder, _, names in os.walk(root):
        for name in names:
            match = LEFTOVER.search(name)
            if match and not _alive(int(match[1])):
                yield Path(folder, name)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
