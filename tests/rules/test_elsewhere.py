"""Rules of the contract that have their place where their matter is read."""

import json

import pytest
from PIL import Image

from simpletuner import rules
from simpletuner.check import read_datasets, read_prompts
from simpletuner.config import load
from simpletuner.data.library import open_library
from simpletuner.data.options import Data
from simpletuner.errors import DataError
from simpletuner.events import EventLog
from simpletuner.training import drift

NUMBERS = {8, 23, 26, 38, 55}
LIBRARY = "user_prompt_library"


@pytest.mark.parametrize(("repeats", "fits"), [(0, False), (1, False), (2, True)])
def test_8_a_dataset_holds_one_update(config, tmp_path, repeats, fits):
    for number in range(3):
        (tmp_path / "cats").mkdir(exist_ok=True)
        Image.new("RGB", (256, 256), (number, 0, 0)).save(tmp_path / f"cats/{number}.png")
    entry = {"id": "cats", "type": "local", "instance_data_dir": "cats", "resolution": 256, "repeats": repeats}
    (tmp_path / "config/multidatabackend.json").write_text(json.dumps([entry]))
    loaded = config({})
    datasets, _ = read_datasets(loaded)

    def opened():
        open_library(datasets, loaded[Data], batch_size=4, accumulation=2, ranks=1, events=EventLog(None)).close()

    if fits:
        opened()
        return
    with pytest.raises(DataError) as stopped:
        opened()
    (problem,) = stopped.value.problems
    said = "\n".join(problem.details)
    assert problem.exit_code == 3 and 'set "repeats": 2' in said and "train_batch_size 4" in said


def test_23_int8_bnb_is_compiled_as_all_kinds_are(config):
    compiled = config({"base_model_precision": "int8-bnb", "dynamo_backend": "inductor"})
    assert not [p for p in rules.check(compiled) if "dynamo_backend" in p.keys]


def test_26_sage_has_no_gradient(config):
    _, (problem, *_) = load(None, {"max_train_steps": 1, "sageattention_usage": "training"}, {})
    assert "has no gradient" in problem.message and problem.exit_code == 2 and problem.keys == ("sageattention_usage",)
    config({"sageattention_usage": "inference"})


@pytest.mark.parametrize(
    ("text", "said", "severity"),
    [
        (None, "cannot be read", "error"),
        ("7", "is an object or a list", "error"),
        ('[{"nickname": "a", "prompt": "x"}, {"nickname": "a", "prompt": "y"}]', "given twice", "error"),
        ('{"a/b": "x"}', 'becomes "a_b"', "notice"),
    ],
)
def test_38_a_prompt_library_can_be_used(config, tmp_path, text, said, severity):
    if text is not None:
        (tmp_path / "p.json").write_text(text)
    _, (problem,) = read_prompts(config({LIBRARY: "p.json"}), None)
    assert said in problem.message and problem.severity == severity
    (tmp_path / "p.json").write_text('{"a": "x"}')
    assert read_prompts(config({LIBRARY: "p.json"}), None)[1] == []


def test_55_a_resume_differs_in_free_keys_only(config):
    stored = config({"seed": 1, "lora_rank": 4}).values()
    same = config({"seed": 1, "lora_rank": 4, "validation_step_interval": 7}).values()
    assert {problem.severity for problem in drift.compare(stored, same)} == {"notice"}
    (rank, seed) = drift.compare(stored, config({"seed": 2, "lora_rank": 8}).values())
    assert rank.exit_code == seed.exit_code == 2 and "allow_config_drift" in seed.fix
    (rank, seed) = drift.compare(stored, config({"seed": 2, "lora_rank": 8}).values(), allow_config_drift=True)
    assert rank.severity == "error" and seed.severity == "warning"
