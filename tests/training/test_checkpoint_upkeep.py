"""Which checkpoints stay: one rule for the run and for prune, pins that hold in both, and nothing lost by a mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from simpletuner.errors import ConfigError, DiskError
from simpletuner.events import EventLog
from simpletuner.training import manifest, upkeep
from simpletuner.training.checkpoint import Checkpoints, Contents
from simpletuner.training.options import Saving


def checkpoints(folder, **saving):
    """Of a run whose state is one small text."""
    contents = Contents(writers={"state/x.txt": lambda path: path.write_text("x" * 100)}, readers={})
    made = Checkpoints(folder, Saving(**{"checkpoints_total_limit": 0} | saving), EventLog(folder), contents)
    made.prepare()
    return made


def save(made, *steps):
    for step in steps:
        made.save(step, "interval", {"step": step})


def names(folder):
    return [path.name for path in manifest.steps(folder).values()]


def doomed(folder, limit=0, every=0):
    return {one.path.name: one.why for one in upkeep.prunable(folder, upkeep.survey(folder), limit, every)}


def damage(folder):
    (folder / "state/x.txt").write_text("y" * 100)


def test_a_survey_tells_step_size_reason_and_damage(tmp_path):
    save(checkpoints(tmp_path), 2, 10)
    damage(tmp_path / "checkpoint-10")
    two, ten = upkeep.survey(tmp_path)
    assert (two.step, two.reason, two.valid, two.pinned) == (2, "interval", True, False)
    assert two.num_bytes == sum(path.stat().st_size for path in two.path.rglob("*") if path.is_file())
    assert abs(two.saved - time.time()) < 60
    assert not ten.valid and "hash differs" in ten.problems[0] and upkeep.newest_valid([two, ten]) is two


def test_sizes_alone_can_be_compared_without_reading(tmp_path):
    save(checkpoints(tmp_path), 1)
    damage(folder := tmp_path / "checkpoint-1")
    assert manifest.verify(folder, read=False) == [] != manifest.verify(folder)
    (folder / "state/x.txt").write_text("short")
    assert "instead of 100" in manifest.verify(folder, read=False)[0]


def test_a_pinned_checkpoint_is_valid_and_survives_the_rotation_of_its_run(tmp_path):
    made = checkpoints(tmp_path, checkpoints_total_limit=2)
    save(made, 1, 2)
    upkeep.pin(tmp_path / "checkpoint-1")
    assert manifest.verify(tmp_path / "checkpoint-1") == []
    save(made, 3, 4, 5)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4", "checkpoint-5"]
    upkeep.unpin(tmp_path / "checkpoint-1")
    save(made, 6)
    assert names(tmp_path) == ["checkpoint-5", "checkpoint-6"]


@pytest.mark.parametrize(("limit", "every"), [(1, 0), (2, 0), (1, 4), (3, 3), (0, 0)])
def test_prune_and_the_run_remove_the_same(tmp_path, limit, every):
    save(checkpoints(tmp_path / "a", checkpoints_total_limit=limit, checkpoints_keep_every=every), *range(1, 10))
    save(checkpoints(tmp_path / "b"), *range(1, 10))
    left = set(names(tmp_path / "b")) - doomed(tmp_path / "b", limit, every).keys()
    assert left == set(names(tmp_path / "a"))


def test_prune_removes_the_damaged_and_what_was_set_aside_but_neither_pinned_nor_newest(tmp_path):
    save(checkpoints(tmp_path), 1, 2, 3, 4)
    for step in (2, 3, 4):
        damage(tmp_path / f"checkpoint-{step}")
    upkeep.pin(tmp_path / "checkpoint-3")
    for name in (".broken-7-a", ".incomplete-8-b", ".deleting-checkpoint-9-c", "earlier-1"):
        (tmp_path / name).mkdir()
    upkeep.pin(tmp_path / ".broken-7-a")
    found = doomed(tmp_path, limit=1)
    assert found.keys() == {"checkpoint-2", "checkpoint-4", ".incomplete-8-b", ".deleting-checkpoint-9-c"}
    assert found["checkpoint-2"].startswith("damaged: state/x.txt")


def test_the_newest_valid_one_stays_even_if_damaged_ones_are_newer(tmp_path):
    save(checkpoints(tmp_path), 1, 2, 3)
    damage(tmp_path / "checkpoint-3")
    assert doomed(tmp_path, limit=1) == {"checkpoint-1": "old", "checkpoint-3": doomed(tmp_path)["checkpoint-3"]}


def test_nothing_is_removed_where_nothing_is_valid(tmp_path):
    save(checkpoints(tmp_path), 1, 2)
    for step in (1, 2):
        damage(tmp_path / f"checkpoint-{step}")
    with pytest.raises(DiskError, match="no checkpoint in .* is valid") as caught:
        doomed(tmp_path)
    assert len(caught.value.problems[0].details) == 2


def test_a_pinned_checkpoint_that_was_set_aside_outlives_the_seven_days(tmp_path):
    for name in ("kept", "gone"):
        (tmp_path / f".broken-1-{name}").mkdir()
    upkeep.pin(tmp_path / ".broken-1-kept")
    for path in tmp_path.glob(".broken-*"):
        os.utime(path, (0, 0))
    checkpoints(tmp_path)
    assert [path.name for path in tmp_path.glob(".broken-*")] == [".broken-1-kept"]


def test_a_deletion_that_fails_half_way_leaves_no_checkpoint_by_name(tmp_path, monkeypatch):
    save(checkpoints(tmp_path), 1, 2)

    def refuse(path):
        raise OSError("busy")

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(OSError, match="busy"):
        upkeep.delete(tmp_path / "checkpoint-1")
    assert names(tmp_path) == ["checkpoint-2"]
    assert [one.why for one in upkeep.left_over(tmp_path)] == ["set aside after a failure"]


def test_a_checkpoint_that_has_just_gone_cannot_be_pinned(tmp_path):
    with pytest.raises(ConfigError, match="does not exist any more"):
        upkeep.pin(tmp_path / "checkpoint-1")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schema": 1}', '{"schema": 1, "files": [{}]}', '{"schema": 2, "files": []}']
)
def test_a_manifest_that_cannot_be_read_is_damage_and_no_crash(tmp_path, text):
    save(checkpoints(tmp_path), 1)
    (tmp_path / "checkpoint-1" / manifest.FILE).write_text(text)
    one = upkeep.look(tmp_path / "checkpoint-1")
    assert not one.valid and one.step == 1 and isinstance(one.reason, str)


def test_neither_loads_torch(tmp_path):
    save(checkpoints(tmp_path), 1)
    program = (
        "import sys; from pathlib import Path; from simpletuner.training import upkeep\n"
        "assert upkeep.survey(Path(sys.argv[1]))[0].valid and not {'torch', 'safetensors'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def test_the_manifest_says_what_the_survey_tells(tmp_path):
    save(checkpoints(tmp_path), 3)
    facts = manifest.facts(tmp_path / "checkpoint-3")
    assert facts["step"] == 3 and {entry["name"] for entry in facts["files"]} == {"state/x.txt", "state/trainer.json"}
    assert json.loads((tmp_path / "checkpoint-3" / manifest.FILE).read_text()) == facts
