"""Content hashes of weight files, each computed once and remembered.

A file is known by path, bytes and modification time. Files in the hub's cache carry their hash as the blob's name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from simpletuner import newfile
from simpletuner.machine import state_dir

# Precisions by the words of the options, as torch prints them: fingerprints hold these.
PRECISIONS = {"bf16": "torch.bfloat16", "default": "torch.bfloat16", "fp16": "torch.float16", "fp32": "torch.float32",
              "no": "torch.float32"}  # fmt: skip
THREADS = 8  # that hash at once: one core takes half a minute for the 24 GB of a Flux
BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git and LFS hashes


def memory_path() -> Path:
    return state_dir() / "hashes.json"


def _remembered(path: Path) -> dict[str, list]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):  # absent or torn: only time is lost
        return {}


def known(path: Path) -> str | None:
    """The digest if it need not be computed."""
    real = path.resolve()
    if real.parent.name == "blobs" and BLOB.fullmatch(real.name):
        return real.name
    stat = real.stat()
    entry = _remembered(memory_path()).get(str(real))
    return entry[2] if entry and entry[:2] == [stat.st_size, stat.st_mtime_ns] else None


def digests(paths: Sequence[Path], *, remember: bool = True) -> list[str]:
    """A name for each file's content, in order: equal names mean equal bytes. Files are read side by side."""
    found = [known(path) for path in paths]
    new = [path.resolve() for path, name in zip(paths, found, strict=True) if name is None]
    with ThreadPoolExecutor(THREADS) as pool:
        made = dict(zip(new, pool.map(newfile.sha256, new), strict=True))
    if remember:
        for real, name in made.items():
            stat = real.stat()
            _remember(str(real), [stat.st_size, stat.st_mtime_ns, name])
    return [name or made[path.resolve()] for path, name in zip(paths, found, strict=True)]


def _remember(key: str, entry: list) -> None:
    path = memory_path()
    with suppress(OSError):  # a read-only home: the file is hashed again next time
        newfile.replace(path, json.dumps(_remembered(path) | {key: entry}).encode())


def combine(*parts: object) -> str:
    """sha256 hex over the parts in order: the fingerprint of what they name together."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()
