"""What the plan says is what happens: the same figures, taken from a real run afterwards."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tiny_flux

from simpletuner import plan
from simpletuner.check import check
from simpletuner.events import read_lines
from simpletuner.machine import Machine
from simpletuner.plan import words

sys.path.insert(0, str(Path(__file__).parents[1] / "run"))

import small  # noqa: E402

HERE = Machine((), 64 * 2**30, 64 * 2**30, 2)
CHANGES = {
    "max_train_steps": 0, "num_train_epochs": 5, "train_batch_size": 2, "gradient_accumulation_steps": 3,
    "validation_disable": False, "validation_step_interval": 3, "validation_resolution": "64x64",
    "validation_num_inference_steps": 2, "validation_prompt": "a red cat", "num_validation_images": 2,
    "checkpoint_epoch_interval": 2, "checkpoints_total_limit": 2, "validation_epoch_interval": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(plan before, run, plan after, output folder)"""
    home = tmp_path_factory.mktemp("planned")
    pictures = small.paint(home / "pictures")
    config = small.configure(home, tiny_flux.build(home / "flux"), pictures, **CHANGES)
    with pytest.MonkeyPatch.context() as patch:  # no other run has measured anything
        patch.setenv("SIMPLETUNER_STATE_DIR", str(home / "state"))
        before = plan.make(check(config, {}, {}), HERE)
        there = sorted(path.name for path in (home / "out").rglob("*")) if (home / "out").exists() else []
        assert there == []  # nothing but the index, and that lies in the cache's folder
        run = small.train(config)
        return before, run, plan.make(check(config, {}, {}), HERE), home / "out"


def test_steps_and_samples_are_those_that_were_taken(made):
    before, run, _, output = made
    details = before.details
    assert before.problems == () and details.length.steps == run.progress.step == max(small.metrics(output))
    batches = sum(health.batches for health in details.datasets)
    assert details.length.per_epoch == batches / 3 and run.progress.position == batches
    assert 5 * batches % 3  # the last step is a short one
    met = small.metrics(output)[run.progress.step]["samples_seen"]
    assert met == 5 * sum(health.samples + health.doubles for health in details.datasets)


def test_saves_and_images_come_when_they_were_said_to(made):
    before, _, _, output = made
    saved = [event["step"] for event in read_lines(output / "events.jsonl") if event["type"] == "checkpoint.saved"]
    shown = small.events(output, "validation.finished")
    steps = [event["step"] for event in small.events(output, "validation.started")]
    assert list(before.details.calendar.saves) == saved and len(saved) > 2
    by_epoch = [event["step"] for event in read_lines(output / "events.jsonl")
                if event["type"] == "checkpoint.saved" and event["data"]["reason"] == "epoch"]  # fmt: skip
    assert by_epoch and not any(step % 4 == 0 for step in by_epoch)
    assert list(before.details.calendar.images) == steps and len(steps) > 2
    assert {event["images"] for event in shown} == {before.details.shots}


def test_the_caches_hold_what_was_to_be_made(made):
    before, _, after, _ = made
    for planned, found in zip(before.details.caches, after.details.caches, strict=True):
        assert planned.present == 0 and planned.to_make == planned.needed == found.present
        assert found.to_make == found.stale == found.bytes_to_make == 0
        files = [path for folder in found.folders for path in folder.rglob("*.safetensors")]
        assert len(files) == found.needed
        assert planned.bytes_to_make == pytest.approx(sum(path.stat().st_size for path in files), rel=0.1)


def test_a_checkpoint_has_the_size_that_was_said(made):
    before, _, _, output = made
    newest = small.newest(output)
    tensors = sum(path.stat().st_size for path in newest.rglob("*.safetensors"))
    # The names of tensors weigh as much as the values of so small a model: they are counted apart.
    heads = sum(int.from_bytes(path.read_bytes()[:8], "little") + 8 for path in newest.rglob("*.safetensors"))
    assert before.details.disk.checkpoint == pytest.approx(tensors - heads, rel=0.02)
    assert before.result == output / small.RESULT and before.result.is_file()
    assert before.details.disk.num_checkpoints == CHANGES["checkpoints_total_limit"] + 1


def test_a_finished_run_is_called_complete(made):
    _, run, after, _ = made
    assert after.can_start and after.details.resume.complete
    assert after.details.resume.checkpoint == f"checkpoint-{run.progress.step}"
    assert after.details.calendar.saves == ()


def test_the_next_plan_tells_the_time_from_this_run(made):
    before, run, after, output = made
    assert "guess" in before.details.time.basis
    step = after.details.time.step
    measured = small.metrics(output)[run.progress.step]["seconds_per_step"]
    assert step.low == step.high == pytest.approx(measured, rel=1e-6)
    assert after.details.time.basis == "measured here with these settings"


def again(made, **changes):
    """The plan of the same run with other options, and the checkpoints that are there afterwards."""
    output = made[3]
    config = output.parent / "out.json"
    values = json.loads(config.read_text()) | changes
    (output.parent / "again.json").write_text(json.dumps(values))
    names = sorted(path.name for path in output.iterdir())
    planned = plan.make(check(output.parent / "again.json", {}, {}), HERE)
    assert sorted(path.name for path in output.iterdir()) == names
    return planned


def test_a_longer_run_goes_on_from_the_newest_checkpoint(made):
    step = made[1].progress.step
    planned = again(made, num_train_epochs=7)
    found = planned.details.resume
    assert planned.can_start and not found.complete and found.checkpoint == f"checkpoint-{step}"
    assert f"RESUME    checkpoint-{step}, {planned.details.length.steps - step} steps left" in words.text(planned)
    assert min(planned.details.calendar.saves) > step


def test_differences_are_listed_and_those_that_no_run_may_have_stop(made):
    gentle = again(made, learning_rate=5e-3)
    assert gentle.can_start
    assert "changed: learning_rate: 0.01 -> 0.005 (applied from the next step)" in words.text(gentle, 120)
    severe = again(made, lora_rank=8)
    assert not severe.can_start and "changed: lora_rank: 4 -> 8" in words.text(severe, 120)
    assert [problem.exit_code for problem in severe.problems if problem.severity == "error"] == [2]


def test_a_fresh_start_names_what_it_would_set_aside(made):
    planned = again(made, resume_from_checkpoint="none", num_train_epochs=1)
    assert planned.details.resume.checkpoint is None and planned.details.resume.step == 0
    assert f"checkpoint-{made[1].progress.step}" in planned.details.resume.moved


def test_a_damaged_checkpoint_is_passed_over_and_told(made):
    output = made[3]
    newest = small.newest(output) / "state" / "trainer.json"
    content = newest.read_bytes()
    try:
        newest.write_bytes(content.replace(b"1", b"2"))
        planned = again(made)
    finally:
        newest.write_bytes(content)
    assert planned.details.resume.step < made[1].progress.step
    assert any("is passed over" in problem.message and problem.area == "disk" for problem in planned.problems)


def test_the_record_is_json_and_holds_the_same(made):
    before = made[0]
    record = json.loads(json.dumps(before.record(), allow_nan=False))
    assert record["length"]["steps"] == before.details.length.steps and record["can_start"] is True
    assert [cache["to_make"] for cache in record["caches"]] == [cache.to_make for cache in before.details.caches]
