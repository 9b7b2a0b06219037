"""The door of `simpletuner checkpoint`: it lists before it removes, asks, and leaves a running run alone."""

from __future__ import annotations

import json
import os
import pty
import subprocess

import pytest
from program import COMMAND, alone, run

from simpletuner.events import EventLog, read_lines
from simpletuner.training import manifest, upkeep
from simpletuner.training.checkpoint import Checkpoints, Contents
from simpletuner.training.lock import Lock
from simpletuner.training.options import Saving


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working directory whose configuration names the output directory `out`, with checkpoints of steps 1 to 4."""
    alone(monkeypatch, tmp_path)
    datasets = [{"id": "pictures", "type": "local", "instance_data_dir": "pictures", "resolution": 64}]
    (tmp_path / "data.json").write_text(json.dumps(datasets))
    config = {"model_flavour": "nano", "output_dir": "out", "data_backend_config": "data.json"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save(tmp_path / "out", 1, 2, 3, 4)
    return tmp_path


def save(folder, *steps):
    contents = Contents(writers={"state/x.txt": lambda path: path.write_text("x" * 100)}, readers={})
    made = Checkpoints(folder, Saving(checkpoints_total_limit=0), EventLog(folder), contents)
    made.prepare()
    for step in steps:
        made.save(step, "interval", {"step": step})


def names(folder):
    return [path.name for path in manifest.steps(folder).values()]


def damage(folder, *steps):
    for step in steps:
        (folder / f"checkpoint-{step}/state/x.txt").write_text("y" * 100)


def asked(*words: str, answer: str):
    """(exit code, what the terminal showed) of the command in a terminal where somebody types `answer`."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [*COMMAND, *words], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    os.write(ours, f"{answer}\n".encode())
    shown = child.communicate(timeout=60)[0]
    os.close(ours)
    os.close(theirs)
    return child.returncode, shown


# ---- list and verify


def test_list_says_which_is_valid_pinned_and_latest(here):
    damage(here / "out", 4)
    upkeep.pin(here / "out/checkpoint-2")
    (here / "out/.broken-9-a").mkdir()
    (here / "out/earlier-1/checkpoint-7").mkdir(parents=True)
    done = run("checkpoint", "list")
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert done.returncode == 0 and list(lines) == [
        *(f"checkpoint-{step}" for step in range(1, 5)), ".broken-9-a", "earlier-1/checkpoint-7",
    ]  # fmt: skip
    assert lines["checkpoint-3"].endswith("valid, latest") and lines["checkpoint-2"].endswith("valid, pinned")
    assert "damaged: state/x.txt" in lines["checkpoint-4"] and lines["checkpoint-1"].endswith("valid")


def test_list_as_json(here):
    found = json.loads(run("checkpoint", "list", "out", "--json").stdout)
    assert [(one["step"], one["latest"]) for one in found["checkpoints"]] == [
        (1, False),
        (2, False),
        (3, False),
        (4, True),
    ]
    assert found["set_aside"] == found["earlier"] == [] and all(one["num_bytes"] > 100 for one in found["checkpoints"])


def test_verify_ends_with_7_only_if_none_is_valid(here):
    damage(here / "out", 4)
    done = run("checkpoint", "verify")
    assert done.returncode == 0 and "latest is checkpoint-3" in done.stdout and "checkpoint-4 is damaged" in done.stderr
    damage(here / "out", 1, 2, 3)
    done = run("checkpoint", "verify")
    assert done.returncode == 7 and "out is valid" in done.stderr
    (here / "empty").mkdir()
    assert run("checkpoint", "verify", "empty").returncode == 7


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("list", "nowhere"), "nowhere does not exist"),
        (("verify", "config.json"), "config.json is a file"),
        (("list", "out", "--dir", "out"), "named twice"),
        (("list", "out", "--example", "nano"), "named twice"),
        (("pin", "checkpoint-9"), "has no checkpoint checkpoint-9"),
        (("pin", "latest", "--dir", "."), "has no checkpoint latest"),
        (("prune", "--keep", "0"), "--keep"),
    ],
)
def test_a_mistake_is_told_and_nothing_done(here, words, line):
    done = run("checkpoint", *words)
    assert done.returncode == 2 and line in done.stderr and len(names(here / "out")) == 4


# ---- prune


def test_prune_lists_and_removes_nothing_without_a_yes(here):
    done = run("checkpoint", "prune", "--keep", "1")
    assert done.returncode == 2 and "only after a yes" in done.stderr
    assert [f"checkpoint-{step}" in done.stderr for step in (1, 2, 3, 4)] == [True, True, True, False]
    assert run("checkpoint", "prune", "--keep", "1", "--dry-run").stdout.count("  old") == 3
    assert len(names(here / "out")) == 4


@pytest.mark.parametrize(("answer", "left", "code"), [("yes", 1, 0), ("y", 4, 2), ("", 4, 2)])
def test_prune_takes_nothing_but_a_typed_yes(here, answer, left, code):
    ended, shown = asked("checkpoint", "prune", "--keep", "1", answer=answer)
    assert ended == code and len(names(here / "out")) == left, shown


def test_prune_tells_the_events_of_the_run(here):
    upkeep.pin(here / "out/checkpoint-1")
    done = run("checkpoint", "prune", "--keep", "1", "--yes", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["removed"] is True
    assert names(here / "out") == ["checkpoint-1", "checkpoint-4"]
    told = [e["data"] for e in read_lines(here / "out/events.jsonl") if e["type"] == "checkpoint.deleted"]
    assert told == [{"path": f"checkpoint-{step}", "reason": "prune: old"} for step in (2, 3)]


def test_prune_without_a_number_goes_by_the_settings_of_the_run(here):
    done = run("checkpoint", "prune", "--yes")
    assert "nothing to remove" in done.stdout  # the default is 5
    settings = {"model_flavour": "nano", "checkpoints_total_limit": 2, "checkpoints_keep_every": 1000}
    (here / "out/config.resolved.json").write_text(json.dumps(settings))
    save(here / "out", 1000)
    assert run("checkpoint", "prune", "--yes").returncode == 0
    assert names(here / "out") == ["checkpoint-3", "checkpoint-4", "checkpoint-1000"]


def test_prune_leaves_a_run_that_goes_on_alone(here):
    with Lock(here / "out"):
        done = run("checkpoint", "prune", "--keep", "1", "--yes")
    assert done.returncode == 2 and "is in use by process" in done.stderr and len(names(here / "out")) == 4


def test_prune_refuses_where_nothing_is_valid(here):
    damage(here / "out", 1, 2, 3, 4)
    done = run("checkpoint", "prune", "--yes")
    assert done.returncode == 7 and len(names(here / "out")) == 4


# ---- pin


def test_a_pin_is_set_and_taken_back_by_name_or_step(here):
    assert "is pinned" in run("checkpoint", "pin", "checkpoint-2").stdout
    assert upkeep.pinned(here / "out/checkpoint-2")
    run("checkpoint", "prune", "--keep", "1", "--yes")
    assert names(here / "out") == ["checkpoint-2", "checkpoint-4"]
    assert json.loads(run("checkpoint", "pin", "2", "--unpin", "--json").stdout)["pinned"] is False
    assert not upkeep.pinned(here / "out/checkpoint-2")
    run("checkpoint", "pin", "latest")
    assert upkeep.pinned(here / "out/checkpoint-4")


# ---- without torch


@pytest.mark.parametrize("words", [("list",), ("verify",), ("pin", "1"), ("prune", "--keep", "1", "--yes")])
def test_no_torch_is_loaded(here, words):
    program = (
        f"import sys\nsys.argv = ['simpletuner', 'checkpoint', *{words!r}]\nfrom simpletuner.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'safetensors', 'PIL'} & {*sys.modules}"
    )
    done = subprocess.run([COMMAND[0], "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
