"""What a plan says of data, caches, memory, disk and resume, and whether the run could start."""

from __future__ import annotations

import json
import os

import pytest

from simpletuner import plan
from simpletuner.data.keys import item_path, latent_key
from simpletuner.data.library import survey
from simpletuner.data.options import Data
from simpletuner.events import EventLog
from simpletuner.models.flux.disk import OnDisk
from simpletuner.plan import disk, words
from simpletuner.training import lock

from .conftest import gpu, machine

CPU = machine()
FULL_SIZE = {"model_flavour": "krea", "mixed_precision": "bf16", "optimizer": "adamw_bf16", "vae_dtype": "bf16"}


def errors(made):
    return [problem for problem in made.problems if problem.severity == "error"]


def test_a_plan_writes_nothing_but_the_index(project):
    checked = project.checked()
    before = {path for path in project.home.rglob("*") if path.is_file()}
    made = plan.make(checked, CPU)
    after = {path for path in project.home.rglob("*") if path.is_file()}
    assert made.can_start
    assert {path.name for path in after - before} == {"index-cats.sqlite", "rejected-cats.jsonl"}


def test_what_is_left_out_is_listed_with_its_reason(project):
    project.add("small.png", 32, 32)
    (project.pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    project.entry["minimum_image_size"] = 64
    made = plan.make(project.checked(), CPU)
    [health] = made.details.datasets
    assert (health.found, health.used) == (8, 6)
    text = words.text(made, 200)
    assert "cats  small.png  32x32 is below minimum_image_size" in text
    assert "cats  broken.png  cannot be read: " in text


def test_a_dataset_that_is_too_small_is_shown_and_stops(project):
    made = plan.make(project.checked(train_batch_size=4, gradient_accumulation_steps=2), CPU)
    assert not made.can_start and made.details.datasets[0].used == 6
    assert [problem.area for problem in errors(made)] == ["dataset"]
    assert "can start: no" in words.text(made)


def test_a_picture_that_changed_is_to_be_encoded_and_the_old_one_is_stale(project, monkeypatch):
    """The caches are filled by hand with files of the right names: counting opens none of them."""
    checked = project.checked()
    [dataset] = checked.datasets.images
    encoder = "a" * 64
    monkeypatch.setattr(OnDisk, "vae_fingerprint", lambda self, dtype, tiling: encoder)
    settings = {"batch_size": 1, "accumulation": 1, "ranks": 1, "events": EventLog(None)}
    library, _ = survey(checked.datasets, checked.config[Data], **settings)
    library.shelves[0].hash()
    for sample, placement in library.shelves[0].items:
        file = dataset.cache / encoder[:12] / item_path(latent_key(sample.digest, placement, encoder))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 100)
    library.close()

    def counts():
        cache = plan.make(project.checked(), CPU).details.caches[1]
        return cache.needed, cache.present, cache.to_make, cache.stale, cache.bytes_present

    assert counts() == (6, 6, 0, 0, 600)
    project.add("a cat 0.png", 64, 64, grey=99)
    assert counts() == (6, 5, 1, 1, 500)


def test_a_model_that_is_not_here_leaves_the_caches_unknown(project):
    project.entry["resolution"] = 512
    made = plan.make(project.checked(**FULL_SIZE), machine(gpu(80, "NVIDIA H100")))
    assert made.can_start and [cache.present for cache in made.details.caches] == [None, None]
    assert made.details.disk.download > 30e9
    assert "access not checked" in words.text(made) and "black-forest-labs" in str(made.problems)


def test_a_run_that_does_not_fit_cannot_start(project):
    project.entry["resolution"] = 1024
    made = plan.make(project.checked(**FULL_SIZE, train_batch_size=4, gradient_checkpointing=False), machine(gpu(45)))
    [problem] = errors(made)
    assert problem.exit_code == 5 and "45.0 GiB" in problem.message
    assert problem.fix == "gradient_checkpointing=true"
    assert "it fits with gradient_checkpointing=true: " in words.text(made)


def test_text_encoders_that_a_gpu_cannot_hold_are_told_and_are_no_obstacle(project):
    """As the run does it: captions are then encoded on the CPU."""
    del project.entry["resolution"]
    small = {"resolution": 512, "validation_resolution": "512x512"}
    tight = FULL_SIZE | {"base_model_precision": "nf4-bnb", "blocks_to_swap": 40, **small}
    made = plan.make(project.checked(**tight), machine(gpu(8)))
    assert made.details.fit.fits and made.details.fit.vram.name != "text cache"
    (told,) = [p for p in made.problems if "encoded on the CPU" in p.message]
    assert told.severity == "warning" and "text_encoder_2_precision=int8-quanto" in told.fix
    large = plan.make(project.checked(**tight), machine(gpu(16)))
    assert not [p for p in large.problems if "encoded on the CPU" in p.message]
    without_ram = machine(gpu(8), ram_gib=4)
    assert not plan.make(project.checked(**tight), without_ram).details.fit.fits


@pytest.mark.parametrize(("memory", "together"), [(45, 0), (30, 0), (14, 2), (9, 2), (2, 0)])
def test_what_would_help_does_help(project, memory, together):
    """Each change by itself, or the fewest that are enough together: a plan with them says the same."""
    del project.entry["resolution"]
    tight = FULL_SIZE | {"train_batch_size": 4, "gradient_checkpointing": False, "resolution": 1024}
    made = plan.make(project.checked(**tight), machine(gpu(memory)))
    remedies = made.details.remedies
    assert len([remedy for remedy in remedies if remedy.together]) == together
    assert ("no setting of this version makes it fit" in words.text(made)) == (memory == 2) == (remedies == ())
    changes: dict = {}
    for remedy in remedies:
        changes = (changes if remedy.together else {}) | dict(remedy.change.values)
        helped = plan.make(project.checked(**tight | changes), machine(gpu(memory)))
        assert helped.details.fit.needed == remedy.peak_bytes
        assert (errors(helped) == []) == remedy.fits == (not together or remedy is remedies[-1])


def test_memory_that_others_use_is_a_warning(project):
    project.entry["resolution"] = 1024
    made = plan.make(project.checked(**FULL_SIZE), machine(gpu(80, free=10)))
    assert made.can_start
    assert any(p.severity == "warning" and "other programs use 70.0 GiB" in p.message for p in made.problems)


def test_without_a_gpu_everything_counts_as_ram(project):
    project.entry["resolution"] = 1024
    made = plan.make(project.checked(**FULL_SIZE), machine(ram_gib=16))
    [problem] = errors(made)
    assert problem.exit_code == 5 and "16.0 GiB of RAM" in problem.message
    assert made.details.fit.ram_needed > 22 * 2**30


def test_a_disk_that_is_too_small_stops(project, monkeypatch):
    monkeypatch.setattr(disk.disk, "__kwdefaults__", {"free": lambda path: 1000})
    made = plan.make(project.checked(), CPU)
    assert errors(made) and {problem.exit_code for problem in errors(made)} == {7}
    assert "0.0 are free" in errors(made)[0].message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_that_cannot_be_written_stops(project):
    closed = project.home / "closed"
    closed.mkdir(mode=0o500)
    made = plan.make(project.checked(output_dir=str(closed / "out"), cache_dir_vae=str(project.home / "vae")), CPU)
    assert any("cannot be written" in problem.message for problem in errors(made))


def test_a_folder_in_use_stops_and_its_lock_is_left_alone(project):
    checked = project.checked()
    output = project.home / "out"
    with lock.Lock(output):
        made = plan.make(checked, CPU)
        [problem] = errors(made)
        assert "is in use by process" in problem.message and problem.exit_code == 2
    assert plan.make(checked, CPU).can_start


def test_the_lock_of_a_process_that_died_does_not_stop(project):
    checked = project.checked()
    output = project.home / "out"
    with lock.Lock(output):
        left = json.loads((output / ".lock").read_text())
    (output / ".lock").write_text(json.dumps(left | {"start": "1"}))
    assert plan.make(checked, CPU).can_start


def test_mistakes_of_the_configuration_come_without_details(project):
    made = plan.make(project.checked(lora_rank=0), CPU)
    assert made.details is None and not made.can_start
    assert words.text(made).startswith("PLAN") and "can start: no" in words.text(made)
    json.dumps(made.record())


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_wider_than_the_terminal(project, width, monkeypatch):
    monkeypatch.chdir(project.home)
    project.add("a very long name of a picture that is too small to be used in any way.png", 8, 8)
    project.entry["minimum_image_size"] = 64
    checked = project.checked(output_dir=str(project.home / "out"), train_batch_size=4)
    for made in (plan.make(checked, CPU), plan.make(checked, machine(gpu(24)))):
        text = words.text(made, width)
        wide = [line for line in text.splitlines() if len(line) > width]
        assert [line for line in wide if "pytorch_lora_weights" not in line] == []  # a path is not broken
        assert "\N{NO-BREAK SPACE}" not in text and "top-ups" in text


@pytest.mark.parametrize(("answer", "codes"), [("refused", [4]), ("granted", []), ("not checked", [])])
def test_a_gated_model_without_access_stops(project, answer, codes):
    project.entry["resolution"] = 512
    made = plan.make(project.checked(**FULL_SIZE), machine(gpu(80)), ask=lambda place: answer)
    assert [problem.exit_code for problem in errors(made)] == codes
    assert f"gated: access {answer}" in words.text(made)


def test_nobody_is_asked_about_a_model_that_is_here(project):
    def ask(place):
        raise AssertionError(place)

    assert plan.make(project.checked(), CPU, ask=ask).details.base.here
