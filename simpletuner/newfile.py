"""A file gets its name only when it is whole: a name that is free, or that of the file it replaces."""

from __future__ import annotations

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
