"""The manifest of a checkpoint: which files it holds, with size and hash, and whether they are still the same.

No torch: a shelf full of checkpoints can be looked through without loading anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simpletuner import newfile

FILE = "MANIFEST.json"
SCHEMA = 1
NAME = re.compile(r"checkpoint-(\d+)")


def steps(output_dir: Path) -> dict[int, Path]:
    """All directories with a checkpoint's name, oldest step first; whether they are valid is another question."""
    found = {int(m[1]): p for p in output_dir.glob("checkpoint-*") if (m := NAME.fullmatch(p.name)) and p.is_dir()}
    return dict(sorted(found.items()))


def num_bytes(folder: Path) -> int:
    """Of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def facts(folder: Path) -> dict[str, Any]:
    """What the manifest says of run, step, reason and model; empty if it cannot be read."""
    try:
        found = json.loads((folder / FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def verify(folder: Path, *, read: bool = True) -> list[str]:
    """What is wrong with a checkpoint, by its manifest; empty if every file has its size and, with `read`, its hash."""
    if (folder / "optimizer.bin").exists() or any(folder.glob("*.guard")):
        return ["it comes from another program and holds pickles, which are never opened"]
    try:
        manifest = json.loads((folder / FILE).read_text("utf-8"))
        schema, files = manifest["schema"], manifest["files"]
    except FileNotFoundError:
        return [f"{FILE} is missing"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{FILE} cannot be read: {error}"]
    if schema != SCHEMA:
        return [f"{FILE} has schema {schema}, and this version reads {SCHEMA}"]
    try:
        return [problem for entry in files if (problem := _verify_file(folder / entry["name"], entry, read))]
    except (KeyError, TypeError) as error:
        return [f"{FILE} is damaged: {error!r}"]


def _verify_file(path: Path, entry: Mapping[str, Any], read: bool) -> str:
    if not path.is_file():
        return f"{entry['name']} is missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{entry['name']} has {path.stat().st_size} bytes instead of {entry['bytes']}"
    whole = not read or newfile.sha256(path) == entry["sha256"]
    return "" if whole else f"{entry['name']} is damaged: its hash differs"
