"""Starts the trainer as a process of its own, passes signals on, and gives back its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from simpletuner.training.signals import EXIT_CODES

RESOLVED = "config.resolved.json"  # in the output folder: what a run was given
# A trainer that vanishes by SIGKILL without our doing was most likely killed for want of RAM.
KILLED = "the system ended the trainer (SIGKILL), most likely for want of RAM"

# Blocks that grow fragment less, which decides whether a card that is just large enough is large enough.
ALLOCATOR = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def command(config: Path, *, json_events: bool = False) -> list[str]:
    """The command that trains `config`, a resolved configuration."""
    return [sys.executable, "-m", "simpletuner.recipe", "--config", str(config), *(["--json"] if json_events else [])]


def run(argv: Sequence[str], stop_timeout: float, exports: Mapping[str, str] | None = None) -> int:
    """The exit code. Signals to end are passed on; the trainer is killed `stop_timeout` seconds later or at a third.

    exports: variables that the child has besides those of this process.
    """
    # A process group of its own: the terminal's Ctrl-C reaches the trainer once, through us, and not twice.
    child = subprocess.Popen(list(argv), start_new_session=True, env={**ALLOCATOR, **os.environ, **(exports or {})})
    asked: list[int] = []

    def forward(number: int, frame: object) -> None:
        asked.append(number)
        os.killpg(child.pid, signal.SIGKILL if len(asked) > 2 else number)

    previous = {number: signal.signal(number, forward) for number in EXIT_CODES}
    try:
        while True:
            try:
                code = child.wait(timeout=stop_timeout if asked else None)
                break
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    if code == -signal.SIGKILL:
        return 128 + signal.SIGKILL if asked else -signal.SIGKILL
    return 128 - code if code < 0 else code
