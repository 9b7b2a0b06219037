"""Rules about what the dataset file and the prompt library hold, on files that are really read."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rules.cases import FULL, LORA, TORCH, functions

from simpletuner import rules
from simpletuner.check import check, read_datasets
from simpletuner.rules import contents

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
KONTEXT, SHARE, WHICH = {"model_flavour": "kontext"}, contents.PROBABILITY, "eval_dataset_id"
STEPS, EPOCHS = "eval_steps_interval", "eval_epoch_interval"


@pytest.fixture
def held(config, tmp_path):
    """(configuration, datasets) of values, with one dataset of the given entry beside the plain one."""
    (tmp_path / "cats").mkdir()

    def load(values, entry=None, role=None, **kind):
        plain = {"type": "local", "instance_data_dir": str(tmp_path / "cats"), "resolution": 1024}
        sets = [{"id": "own"} | plain] + ([{"id": "other"} | plain | entry] if entry is not None else [])
        (tmp_path / "config/multidatabackend.json").write_text(json.dumps(sets))
        loaded = config(values)
        found, problems = read_datasets(loaded)
        assert found, problems
        images = list(found.images)
        if role:  # such entries are not read from the file yet; what a rule would get is the same
            images[-1] = replace(images[-1], entry=images[-1].entry.model_copy(update={"dataset_type": role, **kind}))
        return loaded, images

    return load


def test_kontext_has_pairs(held):
    (rule,) = functions(9)
    problem = rule(*held(KONTEXT))
    assert problem.exit_code == 2 and problem.keys[0] == "model_flavour" and "conditioning" in problem.fix
    assert rule(*held(KONTEXT, {}, "conditioning")) is None and rule(*held({"model_flavour": "dev"})) is None


def test_regularisation_has_a_base(held):
    (rule,) = functions(11)
    regular = {"is_regularisation_data": True}
    (problem,) = rule(*held(FULL, regular))
    assert "dataset other is for regularisation" in problem.message and "multidatabackend.json:1" in problem.where
    assert problem.exit_code == 2 and set(problem.keys) == {"model_type", "is_regularisation_data"}
    assert list(rule(*held(LORA, regular))) == [] and list(rule(*held(FULL, {}))) == []


def test_places_can_be_read(held, monkeypatch, tmp_path):
    assert contents.places_can_be_read in rules.FURTHER_DATASET_RULES
    loaded, datasets = held({}, {"type": "aws", "aws_bucket_name": "cats", "instance_data_dir": None})
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (problem,) = rules.check_contents(loaded, datasets, [])
    assert "dataset other: type=aws needs boto3, which is not installed" in problem.message and problem.exit_code == 2
    assert problem.fix == "pip install 'simpletuner[s3]'" and '\ns3 = ["boto3' in PROJECT.read_text("utf-8")
    assert "multidatabackend.json:1" in problem.where
    assert rules.check_contents(loaded, datasets[:1], []) == []
    (tmp_path / "boto3.py").write_text("raise RuntimeError('it is looked for, not imported')")
    assert rules.check_contents(loaded, datasets, []) == []


def test_tables_can_be_read(held, monkeypatch, tmp_path):
    for name in ("t.parquet", "t.csv"):
        (tmp_path / name).touch()
    keys = {"caption_strategy": "parquet", "parquet": {"path": str(tmp_path / "t.parquet")}}
    loaded, datasets = held({}, keys)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (problem,) = rules.check_contents(loaded, datasets, [])
    assert "t.parquet needs pyarrow, which is not installed" in problem.message and problem.exit_code == 2
    assert problem.fix == "pip install 'simpletuner[datasets]'" and "multidatabackend.json:1" in problem.where
    _, datasets = held({}, keys | {"parquet": {"path": str(tmp_path / "t.csv")}})
    assert rules.check_contents(loaded, datasets, []) == []


def test_connections_have_a_bucket(held):
    rule, given = contents.connections_have_a_bucket, {contents.CONNECTIONS: 9}
    assert rule in rules.FURTHER_DATASET_RULES
    problem = rule(*held(given))
    assert problem.severity == "notice" and problem.keys == (contents.CONNECTIONS,)
    assert rule(*held({})) is None
    assert rule(*held(given, {"type": "aws", "aws_bucket_name": "cats", "instance_data_dir": None})) is None


def test_held_out_sets_are_there(held):
    rule = contents.held_out_sets_are_there
    assert rule in functions(52)
    (problem,) = rule(*held({STEPS: 10}))
    assert problem.severity == "notice" and problem.keys == (STEPS,)
    (problem,) = rule(*held({EPOCHS: 0.5}))
    assert problem.keys == (EPOCHS,)
    assert list(rule(*held({STEPS: 10}, {}, "eval"))) == [] and list(rule(*held({}))) == []
    (problem,) = rule(*held({WHICH: "othr"}, {}, "eval"))
    assert problem.exit_code == 2 and problem.keys == (WHICH,) and '"other"' in problem.fix
    (problem,) = rule(*held({WHICH: "own"}, {}, "eval"))
    assert 'no held-out dataset "own"' in problem.message and "choices: other" in problem.fix
    assert list(rule(*held({WHICH: "other"}, {}, "eval"))) == list(rule(*held({WHICH: "all"}))) == []


def test_masks_are_there(held):
    (rule,) = functions(53)
    problem = rule(*held({SHARE: 0.5}))
    assert problem.severity == "notice" and problem.keys == (SHARE,)
    assert rule(*held({SHARE: 0.5}, {}, "conditioning", conditioning_type="mask"))
    assert rule(*held({SHARE: 0.5}, {}, "conditioning", conditioning_type="segmentation")) is None
    assert rule(*held({SHARE: 1.0})) is None and rule(*held({})) is None


def test_what_could_not_be_read_is_not_judged(held):
    loaded, _ = held(KONTEXT)
    assert rules.check_contents(loaded, None, []) == [] and len(rules.check_contents(loaded, [], [])) == 1


@pytest.mark.parametrize(("kind", "count"), [("full", 3), ("lora", 0)])
def test_full_training_has_no_base_to_aim_at_and_no_strength(tmp_path, monkeypatch, kind, count):
    """Told together with the other mistakes, each at its place."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats").mkdir()
    entry = {"type": "local", "instance_data_dir": str(tmp_path / "cats"), "resolution": 1024}
    (tmp_path / "sets.json").write_text(
        json.dumps([{"id": "own"} | entry, {"id": "all", "is_regularization_data": True} | entry])
    )
    strengths = {name: {"prompt": "a", "adapter_strength": s} for name, s in (("whole", 1), ("half", 0.5))}
    (tmp_path / "prompts.json").write_text(json.dumps({"plain": "a"} | strengths))
    values = {"data_backend_config": "sets.json", "user_prompt_library": "prompts.json", "model_type": kind}
    checked = check(None, {"max_train_steps": 100} | TORCH | values, {})
    found = [problem for problem in checked.problems if problem.severity == "error"]
    assert len(found) == count and all("model_type" in problem.keys for problem in found), found
    if found:
        assert "would train weights in bf16" in found[0].message
        assert "dataset all is for regularisation" in found[1].message and "sets.json" in found[1].where
        assert "prompt half: adapter_strength is 0.5" in found[2].message and found[2].where == "command line"
