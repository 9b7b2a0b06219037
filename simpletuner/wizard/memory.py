"""Answers of a conversation that was broken off, for the next one about the same configuration.

They lie among the program's own files, never beside the configuration: a Ctrl-C leaves nothing in anybody's folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from simpletuner import newfile
from simpletuner.machine import state_dir
from simpletuner.wizard import answers
from simpletuner.wizard.session import Session


def _place(config: Path, environ: Mapping[str, str]) -> Path:
    name = hashlib.sha256(str(config.absolute()).encode()).hexdigest()[:16]
    return state_dir(environ) / "configure" / f"{name}.json"


def keep(session: Session, environ: Mapping[str, str] = os.environ) -> bool:
    """Keeps the answers given so far; whether that could be done and there were any."""
    if not session.answers:
        return False
    try:
        newfile.replace(_place(session.documents.config, environ), answers.text(session).encode())
    except OSError:
        return False
    return True


def recall(config: Path, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The answers kept for this configuration; empty if there are none."""
    try:
        found = json.loads(_place(config, environ).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def forget(config: Path, environ: Mapping[str, str] = os.environ) -> None:
    with suppress(OSError):
        _place(config, environ).unlink(missing_ok=True)
