"""Publishing on the hub: what is uploaded, and whether this machine may. Asks no network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from simpletuner.config import Config
from simpletuner.errors import Problem
from simpletuner.rules.findings import error, notice
from simpletuner.tracking.options import Hub

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def checkpoints_follow_the_push(config: Config) -> Problem | None:
    if config[Hub].push_checkpoints_to_hub and not config[Hub].push_to_hub:
        message = "push_checkpoints_to_hub has no effect: push_to_hub is off"
        return notice(message, "push_checkpoints_to_hub", "push_to_hub", fix="push_to_hub=true uploads both")
    return None


def push_has_a_login(config: Config) -> Problem | None:
    if config[Hub].push_to_hub and not logged_in(os.environ):
        message = "push_to_hub is on, and this machine has no login to the hub"
        return error(message, "push_to_hub", fix="hf auth login", area="auth")
    return None


def logged_in(environ: Mapping[str, str]) -> bool:
    """Whether there is a token, in a variable or in the file that `hf auth login` writes."""
    if any(environ.get(name) for name in TOKENS):
        return True
    home = environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    path = Path(environ.get("HF_TOKEN_PATH") or Path(home, "token"))
    try:
        return bool(path.expanduser().read_text("utf-8").strip())
    except (OSError, UnicodeDecodeError, RuntimeError):  # the last: a home that nobody has
        return False
