"""What a finished run leaves: a file, or the folder of a whole model, put in its place whole or not at all."""

from __future__ import annotations

import filecmp
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from simpletuner import newfile
from simpletuner.training.checkpoint import earlier_folder


def file(source: Path, target: Path) -> None:
    """Puts a copy of `source` at `target`, over what is there. OSError if the disk does not take it."""
    _sweep(target)
    aside = _aside(target)
    shutil.copyfile(source, aside)
    newfile.sync(aside)
    os.replace(aside, target)
    newfile.sync(target.parent)


def folder(target: Path, own: Mapping[str, Path], others: Mapping[str, Path | str]) -> Path | None:
    """Puts a folder at `target`; where there is one, it moves into `earlier-<n>`, which is returned.

    Both are by name within the folder. `own` files are the run's and are linked, which takes no space; `others` are
    copied, since a link would let a change here reach the user's model, or are texts to write. OSError as above.
    """
    _sweep(target)
    aside = _aside(target)
    for name, source in {**others, **own}.items():
        path = aside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, str):
            path.write_text(source, "utf-8")
        elif name in own:
            _link(source, path)
        else:
            shutil.copyfile(source, path)
        newfile.sync(path)
    for inner in (*(path for path in aside.rglob("*") if path.is_dir()), aside):
        newfile.sync(inner)
    home = None
    if os.path.lexists(target):
        home = earlier_folder(target.parent)
        os.rename(target, home / target.name)
    os.rename(aside, target)
    newfile.sync(target.parent)
    return home


def equal(one: Path, other: Path) -> bool:
    """Whether two files, or the files of two folders, are there and have equal bytes."""
    if one.is_dir():
        names = [path.name for path in one.iterdir()]
        return bool(names) and all(equal(one / name, other / name) for name in names)
    if not (one.is_file() and other.is_file()):
        return False
    return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except OSError:  # a file system without links
        shutil.copyfile(source, path)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.tmp-{uuid.uuid4().hex}")


def _sweep(target: Path) -> None:
    """Removes what a process that died on the way to `target` left; only the one with the run's lock comes here."""
    for left in target.parent.glob(f".{target.name}.tmp-*"):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()
