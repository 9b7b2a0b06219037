"""The quantised weights on disk, without torch: what they are called, which there are, and whether they are whole.

    <root>/<key>/manifest.json                          what it holds, of which files, with sizes and hashes
                 weights-00001-of-00012.safetensors     plain tensors

A key is a hash over all that decides the content, so nothing is ever out of date: another content is another folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import struct
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner import newfile

SCHEMA = 1  # of the manifest
CONVERSION = 1  # raised when the same files come to lie otherwise in the model
PACKING = 1  # raised when the same matrix becomes other bytes
MANIFEST = "manifest.json"
KEY = re.compile(r"[0-9a-f]{64}")
ASIDE = re.compile(r"\.([0-9a-f]{64})\.(?:tmp|bad)-(.+)-(\d+)-[0-9a-f]{32}")  # key, machine, process
DAY = 24 * 3600.0
DEFAULT_ROOT = "~/.cache/simpletuner/weights"


def root_of(given: Path | None) -> Path:
    """Where the weights are kept: the option, or the place for all runs of a user."""
    return (given or Path(DEFAULT_ROOT)).expanduser()


def key_of(source: str, kind: str, keep: Iterable[str], dtype: str, settings: str = "") -> str:
    """64 hex digits. source: fingerprint of the files and their configuration; dtype: that of what stays precise."""
    parts = [source, kind, sorted(keep), dtype, settings, CONVERSION, PACKING]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def way_of(via: str, settings: Mapping[str, Any]) -> str:
    """What else decides the content, for `key_of`: diffusers' own quantising, with its settings."""
    return json.dumps({"via": via, **settings}, sort_keys=True) if via == "pipeline" else ""


@dataclass(frozen=True)
class Entry:
    """The weights of one part of a model in one kind."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def title(self) -> str:
        return f"{self.manifest.get('part', '?')} {self.manifest.get('kind', '?')}"

    @property
    def files(self) -> Mapping[str, Any]:
        return self.manifest.get("files") or {}

    @property
    def num_bytes(self) -> int:
        return sum(int(file["bytes"]) for file in self.files.values())


def read(folder: Path) -> Entry | None:
    """The entry in the folder; None if its manifest cannot be read, as when there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        entry = Entry(folder, manifest)
        return entry if manifest["schema"] == SCHEMA and entry.num_bytes >= 0 else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def folders(root: Path) -> list[Path]:
    """Every folder that is named as an entry, whole or not."""
    try:
        return sorted(path for path in root.iterdir() if KEY.fullmatch(path.name))
    except OSError:
        return []


def abandoned(root: Path) -> list[Path]:
    """Folders that a process left which is gone: half written, or damaged and set aside."""
    try:
        return sorted(path for path in root.iterdir() if _is_abandoned(path))
    except OSError:
        return []


def _is_abandoned(path: Path) -> bool:
    if not (found := ASIDE.fullmatch(path.name)):
        return False
    if found[2] != socket.gethostname():  # nobody here knows, unless it is very old
        with suppress(OSError):
            return time.time() - path.stat().st_mtime > DAY
        return False
    return not Path("/proc").is_dir() or not Path("/proc", found[3]).exists()


def aside(root: Path, key: str, why: str) -> Path:
    """A free name beside the entry; why: tmp while it is written, bad once it is found damaged."""
    return root / f".{key}.{why}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"


def remove(folder: Path) -> None:
    """Takes an entry away: it is gone at once, its bytes a little later. No error if another process was quicker."""
    hidden = folder if ASIDE.fullmatch(folder.name) else aside(folder.parent, folder.name, "bad")
    with suppress(FileNotFoundError):
        if hidden != folder:
            os.rename(folder, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def num_bytes(folder: Path) -> int:
    """Of all files in it."""
    total = 0
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                total += path.stat().st_size
    return total


# ---- whether it is whole


def flaws(folder: Path) -> list[str]:
    """What is wrong with an entry as far as sizes and headers tell; empty if it holds. Reads no weights."""
    entry = read(folder)
    if entry is None:
        return [f"{MANIFEST} cannot be read"]
    wrong, found = [], {}
    for name, file in entry.files.items():
        try:
            size, table = (folder / name).stat().st_size, header(folder / name)
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            wrong.append(f"{name} cannot be read: {error}")
            continue
        if size != file["bytes"]:
            wrong.append(f"{name} has {size} bytes instead of {file['bytes']}")
        found.update({tensor: [name, *told] for tensor, told in table.items()})
    if not wrong and found != entry.manifest.get("tensors"):
        wrong.append("the files do not hold the tensors of the manifest")
    return wrong


def header(path: Path) -> dict[str, list]:
    """Tensor name -> [dtype, shape] of a safetensors file: 8 bytes of length, then a table."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError("its header is torn")
        table = json.loads(file.read(length))
    return {name: [told["dtype"], told["shape"]] for name, told in table.items() if name != "__metadata__"}


def damaged(folder: Path) -> list[str]:
    """As `flaws`, and every file is read and its hash compared."""
    if wrong := flaws(folder):
        return wrong
    entry = read(folder)
    assert entry is not None
    return [
        f"{name} does not have its hash"
        for name, file in entry.files.items()
        if newfile.sha256(folder / name) != file["sha256"]
    ]
