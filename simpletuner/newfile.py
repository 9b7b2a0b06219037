"""Files that are whole: their names, which they get only then, that they are on the disk, and what they hold."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def replace(path: Path, data: bytes, like: Path | None = None) -> None:
    """Puts `data` at `path` in one step, on the disk when this returns; folders above it are made.

    like: a file whose permissions it takes, if that is there. OSError as from the file system; then the file is as it
    was.
    """
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if like and like.exists():
            shutil.copymode(like, aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def place(aside: Path, path: Path) -> None:
    """Gives a whole file its name. FileExistsError if it is taken: unlike a rename, a link takes nobody's place."""
    try:
        os.link(aside, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with path.open("xb") as file:
            file.write(aside.read_bytes())


def place_first(aside: Path, paths: Iterable[Path]) -> Path:
    """Gives a whole file the first of these names that is free, also while another program does the same.

    FileExistsError if none is.
    """
    for path in paths:
        with suppress(FileExistsError):
            place(aside, path)
            return path
    raise FileExistsError("every name is taken")


def sync(path: Path) -> None:
    """Returns when the file's content, or the names in the folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Of the file's content, in hex."""
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
