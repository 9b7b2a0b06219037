"""Options as words, and their values before they are read."""

from __future__ import annotations

import json

import pytest

from simpletuner.config import load
from simpletuner.overrides import command_line, extra_args


@pytest.mark.parametrize(
    ("words", "both"),
    [
        (["seed=1", "seed=2"], '"1" and "2"'),
        (["--seed", "1", "--seed=2"], '"1" and "2"'),
        (["--lora-rank=4", "lora_rank=8"], '"4" and "8"'),
        (["--validation_on_startup", "--no-validation_on_startup"], "true and false"),
        (["--seedling=1", "--seedling=2"], '"1" and "2"'),
    ],
    ids=" ".join,
)
def test_a_key_given_twice_with_different_values_is_an_error_that_names_both(words, both):
    _, (problem,) = command_line(words)
    assert problem.severity == "error" and problem.where == "command line" and problem.fix == "keep one"
    assert problem.message.endswith(f"is given twice with different values: {both}")


@pytest.mark.parametrize(
    "words",
    [["seed=1", "--seed", "1"], ["learning_rate=1e-4", "learning_rate=0.0001"], ["--disable_tf32", "disable_tf32=yes"]],
    ids=" ".join,
)
def test_a_key_given_twice_with_equal_values_is_a_notice(words):
    values, (problem,) = command_line(words)
    assert len(values) == 1 and problem.severity == "notice"
    assert problem.message.endswith("is given twice with equal values")


def test_extra_args_may_not_contradict_themselves_either():
    _, (problem,) = extra_args("--seed=1 --seed=2", "TRAINER_EXTRA_ARGS", "env TRAINER_EXTRA_ARGS")
    assert problem.severity == "error" and problem.where == "env TRAINER_EXTRA_ARGS"


def test_quotes_around_a_value_go_before_its_meaning_is_looked_for(tmp_path):
    file = tmp_path / "config.json"
    written = {
        "lr_scheduler": "'constant'",
        "lr_warmup_steps": "'10'",
        "caption_strategy": '"instance_prompt"',
        "lora_rank": "''",
    }
    file.write_text(json.dumps(written))
    config, problems = load(file, {}, {})
    values = config.values()
    assert values["lr_scheduler"] == "constant_with_warmup" and values["caption_strategy"] == "instanceprompt"
    assert values["lora_rank"] == 16 and [p.severity for p in problems] == ["notice", "notice"]


def test_an_empty_folder_of_the_transformer_is_unset_and_none_is_the_root():
    key = "pretrained_transformer_subfolder"
    assert load(None, {key: ""}, {})[0].values()[key] == "transformer"
    assert load(None, {key: "none"}, {})[0].values()[key] == "none"


@pytest.mark.parametrize("key", ["peft_lora_target_modules", "flow_cubic_schedule_weights"])
def test_a_list_in_a_file_that_is_missing_is_found_before_the_run(tmp_path, key):
    (problem,) = [p for p in load(None, {key: str(tmp_path / "none.json")}, {})[1] if p.severity == "error"]
    assert problem.message == f"{key}: cannot be read: No such file or directory" and problem.keys == (key,)
