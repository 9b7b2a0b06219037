"""train.sh finds the program, hands everything on, and ends with its exit code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simpletuner.cli.surfaces import ROOT

SCRIPT = ROOT / "train.sh"
ORDER = ("VENV_PATH", "VIRTUAL_ENV", ".venv", "venv")


@pytest.fixture
def clone(tmp_path):
    """A clone that holds nothing but train.sh."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    shutil.copy2(SCRIPT, folder)
    return folder


def venv(folder: Path, name: str) -> Path:
    """A virtual environment whose program shows what it was given, and ends with 7."""
    program = folder / "bin/simpletuner"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\necho {name} "ENV=$ENV"\nfor word in "$@"; do echo "[$word]"; done\nexit 7\n')
    program.chmod(0o755)
    return folder


def start(clone, *words, **environ):
    base = {"PATH": "/usr/bin:/bin", "HOME": str(clone)}
    return subprocess.run(
        [clone / "train.sh", *words], env=base | environ, capture_output=True, text=True, cwd=clone.parent
    )


def test_it_is_executable_and_short():
    assert os.access(SCRIPT, os.X_OK) and len(SCRIPT.read_text().splitlines()) <= 14


def test_words_environment_and_exit_code_pass_through(clone):
    venv(clone / ".venv", "own")
    done = start(clone, "--resume", "a b", "seed=1", ENV="portraits")
    assert done.stdout.splitlines() == ["own ENV=portraits", "[train]", "[--resume]", "[a b]", "[seed=1]"]
    assert done.returncode == 7


def test_the_first_virtual_environment_that_has_the_program_is_used(clone):
    environ = {name: str(venv(clone.parent / name, name)) for name in ORDER[:2]}
    for name in ORDER[2:]:
        venv(clone / name, name)
    for name in ORDER:
        assert start(clone, **environ).stdout.startswith(name)
        if name in environ:
            environ[name] = str(clone.parent / "nowhere")
        else:
            shutil.rmtree(clone / name)


def test_without_the_program_it_says_how_to_install_it(clone):
    done = start(clone)
    assert done.returncode == 2 and "pip install" in done.stderr


def test_the_real_program_answers(clone):
    done = start(clone, "--config", "none.json", VENV_PATH=str(Path(sys.executable).parent.parent))
    assert done.returncode == 2 and "no configuration found" in done.stderr and "none.json" in done.stderr
