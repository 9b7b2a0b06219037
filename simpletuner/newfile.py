"""A finished file gets its name without taking anybody's place."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


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
