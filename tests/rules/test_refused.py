"""One mistake is one error: what only follows from the default in its place is not said."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from simpletuner.check import check

NANO = {"model_flavour": "nano", "max_train_steps": 5}


@pytest.fixture
def small_set(config, tmp_path):
    """A dataset file that suits nano, and no other flavour."""
    (tmp_path / "cats").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "cats/one.png")
    entry = {"id": "cats", "type": "local", "instance_data_dir": "cats", "resolution": 64, "repeats": 9}
    path = tmp_path / "config/multidatabackend.json"
    path.write_text(json.dumps([entry]))
    return path


def errors(values):
    return [problem for problem in check(None, values, {}).problems if problem.severity == "error"]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ({"mixed_precision": "no", "optimizer": "torch-adamw"}, {"optimizer": "adam"}),
        ({}, {"max_train_steps": "many"}),
        ({}, {"model_flavour": "dev-turbo"}),
        ({}, {"model_family": "sd3"}),
    ],
    ids=["optimizer", "length", "flavour", "family"],
)
def test_a_refused_value_is_one_error(small_set, right, wrong):
    assert errors(NANO | {"mixed_precision": "no", "optimizer": "torch-adamw"} | right) == []
    (problem,) = errors(NANO | {"mixed_precision": "no", "optimizer": "torch-adamw"} | right | wrong)
    assert problem.keys == tuple(wrong)


def test_what_has_nothing_to_do_with_it_is_said_as_well(small_set):
    small_set.write_text(small_set.read_text().replace('"repeats"', '"repaets"'))
    found = errors({"model_flavour": "dev-turbo", "num_train_epochs": 1, "max_train_steps": 1, "seed": "x"})
    said = "\n".join(problem.message for problem in found)
    assert len(found) == 4
    assert [part for part in ("dev-turbo", "repaets", "seed", "max_train_steps") if part not in said] == []


def test_a_value_to_come_is_judged_as_it_is(small_set):
    """It is kept, unlike a refused one, so that what goes wrong with it is told before the feature is there."""
    found = errors({"model_flavour": "schnell", "max_train_steps": 1})
    assert any("not yet available" in problem.message for problem in found)
    assert any("cats" in problem.message and "64" in problem.message for problem in found)
