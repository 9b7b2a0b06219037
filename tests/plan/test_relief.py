"""What makes a run need less memory, and whether it then fits."""

from __future__ import annotations

import pytest

from simpletuner import rules
from simpletuner.config import command_line, load
from simpletuner.plan import relief

FP32 = {"optimizer": "torch-adamw", "base_model_precision": "fp32"}


def lines(**values):
    config, problems = load(None, {"max_train_steps": 100} | values, {})
    assert problems == []
    return [str(change) for change in relief.changes(config, ())], config


def test_lines_about_a_lora_are_for_a_lora():
    assert "lora_rank=8, in a new output_dir" in lines()[0]
    assert not any("lora" in line for line in lines(model_type="full")[0])


@pytest.mark.parametrize("values", [{}, {"model_type": "full"}, FP32, FP32 | {"model_type": "full"}], ids=str)
def test_every_line_is_a_configuration_that_runs(values):
    """Taken one by one, none breaks a rule that the configuration did not break."""
    found, config = lines(**values, train_batch_size=2)
    before = {problem.message for problem in rules.check(config) if problem.severity == "error"}
    assert len(found) >= 2
    for line in found:
        changes, wrong = command_line(line.removesuffix(", in a new output_dir").split(", "))
        after, problems = load(None, {"max_train_steps": 100, "train_batch_size": 2} | values | changes, {})
        assert wrong == problems == []
        assert {problem.message for problem in rules.check(after) if problem.severity == "error"} <= before, line


def test_a_smaller_optimizer_for_fp32_weights_comes_with_bf16_weights():
    assert "optimizer=adamw_bf16, base_model_precision=bf16, in a new output_dir" in lines(**FP32)[0]
    assert "optimizer=adamw_bf16" in lines(optimizer="torch-adamw")[0]
    assert not any("adamw_bf16" in line for line in lines()[0])
