"""Answers without a conversation: from files, and none at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


def configure(home, *words: str) -> subprocess.CompletedProcess:
    argv = [sys.executable, "-m", "simpletuner.cli.main", "configure", *words]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(argv, cwd=home, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env)


@pytest.fixture
def given(home) -> dict:
    """All answers, as a run without a question leaves them."""
    done = configure(home, "--defaults", "--save-answers", "answers.json", "config/a.json")
    assert done.returncode == 0, done.stderr
    return json.loads((home / "answers.json").read_text())


def replayed(home, answers: dict) -> subprocess.CompletedProcess:
    (home / "changed.json").write_text(json.dumps(answers))
    return configure(home, "--answers", "changed.json", "config/b.json")


@pytest.mark.parametrize(
    "name", ["start", "images", "captions", "size", "rank", "length", "output", "prompts", "reports"]
)
def test_a_missing_answer_is_an_error_with_its_name(home, given, name):
    del given[name]
    done = replayed(home, given)
    assert done.returncode == 2 and f"{name}: no answer" in done.stderr
    assert not (home / "config/b.json").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("start", "nothing"), ("model", "sd3"), ("images", "nowhere"), ("size", True), ("rank", 0), ("length", "soon"),
     ("output", 7), ("keep", -1), ("prompts", {}), ("precision", "int1"), ("reports", "everybody"), ("gpus", "auto")],
)  # fmt: skip
def test_a_wrong_answer_is_an_error_with_its_name_and_place(home, given, name, value):
    done = replayed(home, given | {name: value})
    assert done.returncode == 2 and f"{name}: " in done.stderr and "changed.json:1:" in done.stderr
    assert not (home / "config/b.json").exists()


def test_all_wrong_answers_are_told_at_once(home, given):
    done = replayed(home, given | {"rank": 0, "length": "soon", "rnak": 4})
    assert "3 errors" in done.stderr and 'did you mean "rank"?' in done.stderr


def test_an_answer_that_is_not_asked_for_is_told(home, given):
    done = replayed(home, given | {"library": "prompts.json"})
    assert done.returncode == 0 and "library: not asked" in done.stderr


def test_nothing_leaves_the_machine_by_default(home, given):
    assert given["reports"] == "local" and given.get("hub", "no") == "no"
    config = json.loads((home / "config/a.json").read_text())
    assert not {"report_to", "push_to_hub", "webhook_config"} & set(config)


def test_without_a_terminal_there_must_be_answers(home):
    done = configure(home)
    assert done.returncode == 2 and "there is no terminal to ask on" in done.stderr
    assert configure(home, "--answers", "a.json", "--defaults").returncode == 2


def test_the_proposals_need_pictures(tmp_path):
    (tmp_path / "empty").mkdir()
    done = configure(tmp_path / "empty", "--defaults", "--from", "style")
    assert done.returncode == 2 and "images: " in done.stderr and "--images" in done.stderr
    assert list((tmp_path / "empty").iterdir()) == []


def test_an_example_lends_its_pictures_to_those_who_choose_it(tmp_path):
    done = configure(tmp_path, "--defaults")  # without a GPU its settings are proposed
    assert done.returncode == 2 and "images: " in done.stderr and "--images FOLDER" in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = configure(tmp_path, "--defaults", "--from", "nano")
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((tmp_path / "config/multidatabackend.json").read_text())
    assert "nano" in entry["instance_data_dir"]


def test_an_empty_folder_name_is_none(home):
    done = configure(home, "--defaults", "--images", "")
    assert done.returncode == 2 and "images: no folder was named" in done.stderr


def test_it_loads_no_torch(home):
    program = "import sys; from simpletuner.cli import main\ntry: main.main()\nfinally: print(sorted(sys.modules))"
    words = ["configure", "--defaults"]
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=home, capture_output=True, text=True)
    assert done.returncode == 0 and "'simpletuner.wizard.session'" in done.stdout and "'torch'" not in done.stdout


def test_machines_get_one_record(home):
    done = configure(home, "--defaults", "--json")
    record = json.loads(done.stdout)
    assert record["exit_code"] == 0 and record["written"][-1] == "config/config.json"
    assert {"plan", "problems"} <= set(record)
