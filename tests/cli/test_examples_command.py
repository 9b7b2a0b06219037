"""`simpletuner examples`: a copy is one's own, and works where it lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import alone, run

from simpletuner.examples import EXAMPLES


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    return alone(monkeypatch, tmp_path)


@pytest.mark.parametrize("words", [("--dest", "my own/copy"), ()], ids=["--dest", "config/NAME"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_copy_validates_and_reads_the_files_beside_it(name, words):
    done = run("examples", "copy", name, *words)
    config = Path(done.stdout.splitlines()[0])
    assert done.returncode == 0 and done.stderr == f"next: simpletuner train --config {config.parent}\n"
    shown = json.loads(run("validate", "--json", "--show", "--config", str(config.parent)).stdout)
    assert shown["exit_code"] == 0
    values = {option["key"]: option["value"] for option in shown["options"]}
    assert Path(values["data_backend_config"]) == (config.parent / "multidatabackend.json").absolute()
    config.with_name("multidatabackend.json").write_text("[]")
    assert run("validate", "--config", str(config.parent)).returncode == 2


def test_the_same_as_json():
    rows = json.loads(run("examples", "list", "--json").stdout)["examples"]
    assert [row["name"] for row in rows] == list(EXAMPLES) and all(all(row.values()) for row in rows)
    files = json.loads(run("examples", "copy", "nano", "--json").stdout)["files"]
    assert files and all(Path(file).is_file() for file in files)


def test_nothing_is_overwritten():
    run("examples", "copy", "nano")
    Path("config/nano/config.json").write_text("mine")
    done = run("examples", "copy", "nano")
    assert done.returncode == 2 and "user_prompt_library.json exist already" in done.stderr
    assert Path("config/nano/config.json").read_text() == "mine"
    Path("other").mkdir()
    Path("other/config.json").write_text("mine")
    assert "other/config.json exists already" in run("examples", "copy", "nano", "--dest", "other").stderr
