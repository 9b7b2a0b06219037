"""Pictures to be asked about, and the files of a person who has been here before."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

import simpletuner

sys.path.insert(0, str(Path(__file__).parent))

import handmade  # noqa: E402

PICTURES = Path(simpletuner.__file__).parent / "nano" / "pictures"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty working directory but for a folder of twelve pictures with captions."""
    home = tmp_path / "home"
    (home / "pictures").mkdir(parents=True)
    for picture in sorted(PICTURES.glob("*.png"))[:12]:
        for path in (picture, picture.with_suffix(".txt")):
            shutil.copy(path, home / "pictures")
    monkeypatch.chdir(home)
    monkeypatch.setenv("SIMPLETUNER_STATE_DIR", str(tmp_path / "state"))
    return home


@pytest.fixture
def configured(home) -> Path:
    """The same with a configuration that somebody wrote by hand."""
    (home / "config").mkdir()
    (home / "config/config.json").write_text(handmade.CONFIG)
    (home / "config/multidatabackend.json").write_text(handmade.DATASETS)
    (home / "config/mine.json").write_text(handmade.PROMPTS)
    return home
