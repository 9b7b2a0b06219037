"""`simpletuner help`: any name that an option has or had, keys of the dataset file, and commands."""

from __future__ import annotations

import json

import pytest
from program import alone, run

from simpletuner import retired
from simpletuner.config import FORMER, OPTIONS
from simpletuner.data import options as data
from simpletuner.envfile import NAMES


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    return alone(monkeypatch, tmp_path)


def test_an_option_with_choices_tells_them_its_default_and_when_it_counts():
    text = run("help", "lora_init_type").stdout
    assert "default: " in text and "has an effect only if model_type=lora" in text
    assert all(f"  {name}" in text for name, _ in OPTIONS["lora_init_type"].choices)


@pytest.mark.parametrize("name", [*OPTIONS, *FORMER, *NAMES])
def test_every_option_is_explained_under_all_its_names(name):
    done = run("help", name)
    assert done.returncode == 0 and len(done.stdout.splitlines()) >= (5 if FORMER.get(name, name) in OPTIONS else 1)


def test_a_former_name_leads_to_the_present_one():
    assert run("help", "--validation-steps").stdout.startswith("validation_steps is read as validation_step_interval.")
    assert "use_dora=true is read as flux_lora_module_type=dora." in run("help", "use_dora").stdout
    assert run("help", "MODEL_NAME").stdout.startswith("MODEL_NAME is read as pretrained_model_name_or_path.")


@pytest.mark.parametrize("name", [key for key in data.ImageEntry.model_fields if key not in OPTIONS])
def test_keys_of_the_dataset_file_are_explained(name):
    text = run("help", name).stdout
    assert "a key of an entry in the dataset file" in text and "default: " in text


def test_a_key_of_both_says_so():
    assert "also a key of an entry in the dataset file" in run("help", "resolution").stdout


def test_keys_without_a_place_say_why():
    assert "has no effect" in run("help", "snr_gamma").stdout
    assert "is not offered" in run("help", "controlnet").stdout
    assert "not yet available" in run("help", sorted(data.NOT_YET)[0]).stdout
    assert all(run("help", key).returncode == 0 for key in retired.FORMER_SWITCHES)


def test_commands_below_commands():
    assert run("help", "examples", "copy").stdout == run("examples", "copy", "--help").stdout
    assert run("help").stdout == run("--help").stdout


def test_unknown_names_get_the_nearest_option_or_command():
    assert 'did you mean "train"?' in run("help", "trian").stderr
    assert 'did you mean "crop_style"?' in run("help", "crop_stile").stderr


def test_the_same_as_json():
    record = json.loads(run("help", "lora_rank", "--json").stdout)
    assert (record["key"], record["default"], record["low"], record["kind"]) == ("lora_rank", 16, 1, "int")
    assert json.loads(run("help", "train", "--json").stdout)["help"].startswith("Usage: ")
