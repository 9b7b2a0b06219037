"""Every configuration that comes with the program, and the way the quickstart writes its own, loads as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from simpletuner import check
from simpletuner.cli.surfaces import ROOT
from simpletuner.data import datasets
from simpletuner.data.options import Data
from simpletuner.examples import EXAMPLES

SHIPPED = ("config.json", "multidatabackend.json", "user_prompt_library.json")

# A configuration in the original's spelling: dashes before keys, texts for numbers and for yes and no, former names.
QUICKSTART = {
    "--resume_from_checkpoint": "latest",
    "--data_backend_config": "config/multidatabackend.json",
    "--user_prompt_library": "config/user_prompt_library.json",
    "--output_dir": "output/models",
    "--model_type": "lora",
    "--model_family": "flux",
    "--model_flavour": "dev",
    "--pretrained_model_name_or_path": "black-forest-labs/FLUX.1-dev",
    "--lora_type": "standard",
    "--lora_rank": 4,
    "--flux_lora_target": "all",
    "--aspect_bucket_rounding": 2,
    "--resolution": 1024,
    "--resolution_type": "pixel_area",
    "--minimum_image_size": 0,
    "--caption_dropout_probability": "0.1",
    "--seed": "42",
    "--max_train_steps": 10000,
    "--num_train_epochs": 0,
    "--train_batch_size": "1",
    "--gradient_accumulation_steps": 1,
    "--gradient_checkpointing": "true",
    "--mixed_precision": "bf16",
    "--base_model_precision": "no_change",
    "--optimizer": "adamw_bf16",
    "--learning_rate": "1e-4",
    "--lr_scheduler": "polynomial",
    "--lr_warmup_steps": "100",
    "--max_grad_norm": 1.0,
    "--use_ema": "false",
    "--report_to": "none",
    "--push_to_hub": "false",
    "--push_checkpoints_to_hub": "false",
    "--hub_model_id": "my-lora",
    "--tracker_project_name": "flux-training",
    "--tracker_run_name": "first-try",
    "--checkpointing_steps": 500,
    "--checkpoints_total_limit": 5,
    "--validation_steps": "500",
    "--validation_prompt": "a photo of mysubject",
    "--validation_negative_prompt": "",
    "--validation_guidance": 3.0,
    "--validation_guidance_real": 1.0,
    "--validation_guidance_rescale": "0.0",
    "--validation_num_inference_steps": "20",
    "--validation_resolution": "1024x1024",
    "--validation_seed": 42,
    "--validation_torch_compile": "false",
    "--disable_benchmark": "false",
    "--disable_bucket_pruning": "true",
}
# Renamed, without effect here, or a name of something that is off: one notice for each, and nothing else.
NOTICES = {
    "checkpoint_step_interval", "validation_step_interval", "validation_guidance_rescale", "validation_torch_compile",
    "disable_bucket_pruning", "hub_model_id", "tracker_project_name", "tracker_run_name",
}  # fmt: skip


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A working directory with the shipped files in use and the quickstart's image folders."""
    monkeypatch.chdir(tmp_path)
    Path("config").mkdir()
    for name in SHIPPED:
        shutil.copyfile(ROOT / f"config/{name}.example", f"config/{name}")
    for folder in ("pseudo-camera-10k", "dreambooth-subject"):
        Path("datasets", folder).mkdir(parents=True)
    return tmp_path


def warnings(problems):
    assert [p for p in problems if p.severity == "error"] == []
    return [p for p in problems if p.severity == "warning"]


def test_nothing_else_is_shipped():
    assert {p.name for p in (ROOT / "config").glob("*.example")} == {f"{name}.example" for name in SHIPPED}


def test_the_shipped_files_load_without_a_word(clone):
    checked = check.check(Path("config/config.json"), {}, {})
    assert checked.problems == []
    assert [d.id for d in checked.datasets.images] == ["dreambooth-subject", "dreambooth-subject-512"]
    assert len(checked.prompts) == 7


def test_the_quickstarts_four_datasets_load_without_a_warning(clone):
    entries = json.loads(Path("config/multidatabackend.json").read_text())
    for entry in entries:
        entry["disabled"] = False
    Path("data.json").write_text(json.dumps(entries))
    found, problems = datasets.load(Path("data.json"), Data(), family="flux", alignment=64, output_dir=clone / "out")
    assert problems == [] and len(found.images) == 3
    camera, large, small = found.images
    assert camera.entry.is_regularisation_data and camera.entry.repeats == 0
    assert large.place == small.place and large.entry.repeats == 1000
    assert (large.entry.resolution, small.entry.resolution) == (1024, 512)


def test_the_quickstarts_own_spelling_gives_the_documented_notices(clone):
    text = json.dumps(QUICKSTART, indent=4).removesuffix("\n}") + ",\n}\n"  # it ends in a trailing comma
    Path("config/config.json").write_text(text)
    checked = check.check(Path("config/config.json"), {}, {})
    (warning,) = warnings(checked.problems)
    assert warning.message == "trailing comma"
    notices = [p for p in checked.problems if p.severity == "notice"]
    assert {p.keys[0] for p in notices} == NOTICES and len(notices) == len(NOTICES)
    values = checked.config.values()
    assert (values["gradient_checkpointing"], values["disable_benchmark"]) == (True, False)
    assert (values["validation_step_interval"], values["learning_rate"], values["lora_rank"]) == (500, 1e-4, 4)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_packaged_example_loads_without_a_word(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checked = check.check(EXAMPLES[name].folder / "config.json", {}, {})
    assert checked.problems == [] and checked.datasets.images and checked.prompts
