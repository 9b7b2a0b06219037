"""The seed of a run whose configuration leaves it to chance."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

HIGHEST = 2**31 - 1


def settle(output_dir: Path, *, fresh: bool) -> int:
    """The seed that the run in `output_dir` has recorded; a drawn one if it has none, or if it is to start afresh."""
    recorded = None if fresh else _recorded(output_dir)
    return secrets.randbelow(HIGHEST + 1) if recorded is None else recorded


def _recorded(output_dir: Path) -> int | None:
    checkpoints = [p for p in output_dir.glob("checkpoint-*") if p.name[11:].isdigit()]
    newest = sorted(checkpoints, key=lambda p: int(p.name[11:]), reverse=True)
    for folder in (*newest, output_dir):  # the checkpoint counts: the weights come from it
        try:
            found = json.loads((folder / "config.resolved.json").read_text("utf-8"))["seed"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(found, int) and found >= 0:
            return found
    return None
