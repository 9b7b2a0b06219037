"""The console program as tests start it: in a process of its own, or, quicker, in theirs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from simpletuner.cli.main import main

COMMAND = [sys.executable, "-m", "simpletuner.cli.main"]


def start(*words, **environ):
    """The console program in a process of its own."""
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, env=os.environ | environ)


def run(*words, **environ):
    """The console program without a process of its own: quicker, and the same to the last line."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "argv", ["simpletuner", *words])
        for name, value in environ.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            main()
    return subprocess.CompletedProcess(words, end.value.code, stdout.getvalue(), stderr.getvalue())


def alone(monkeypatch, folder):
    """An empty working directory, a home of its own, and an environment that names no configuration and no hub."""
    for name in list(os.environ):
        if name.startswith(("SIMPLETUNER_", "HF_")) or name in (
            "ENV",
            "CONFIG_PATH",
            "CONFIG_BACKEND",
            "TRAINER_EXTRA_ARGS",
        ):
            monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder / "home"))
    return folder
