import subprocess
import sys

import pytest

from simpletuner.memory.options import Memory
from simpletuner.optim.options import Optimizer
from simpletuner.schema import Raw, options, parse
from simpletuner.training.options import Saving, Speed, Training, num_bytes

GROUPS = [Training, Speed, Saving, Memory, Optimizer]


def test_the_option_groups_load_no_torch():
    modules = "simpletuner.training.options, simpletuner.optim.options, simpletuner.optim.schedules"
    program = f"import sys, {modules}, simpletuner.memory.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_defaults_are_those_of_the_contract():
    found = {key: option.default for key, option in options(GROUPS).items()}
    assert found["train_batch_size"] == 1 and found["seed"] == 42 and found["resume_from_checkpoint"] == "latest"
    assert found["lr_end"] == 4e-7 and found["max_grad_norm"] == 2.0 and found["checkpoint_step_interval"] == 500
    assert found["checkpoints_total_limit"] == 5 and found["optimizer"] == "adamw_bf16"
    assert found["gradient_checkpointing"] is True and found["mixed_precision"] == "bf16"


def test_former_names_are_known():
    former = {name: key for key, option in options(GROUPS).items() for name in option.former}
    assert former == {
        "adam_beta1": "optimizer_beta1",
        "adam_beta2": "optimizer_beta2",
        "checkpointing_steps": "checkpoint_step_interval",
        "save_total_limit": "checkpoints_total_limit",
    }


@pytest.mark.parametrize(("text", "size"), [("100G", 100 * 10**9), ("1.5m", 1_500_000), ("7", 7), ("2 TB", 2 * 10**12)])
def test_a_size_is_a_number_and_a_unit(text, size):
    assert num_bytes(text) == size


def test_a_wrong_size_is_a_problem_with_its_key():
    groups, problems = parse([Saving], {"disk_low_threshold": Raw("much", "config.json:3:1")})
    assert [p.keys for p in problems] == [("disk_low_threshold",)] and problems[0].where == "config.json:3:1"
    groups, problems = parse([Saving], {"disk_low_threshold": Raw("100G", "")})
    assert problems == [] and groups["Saving"].disk_low_threshold == "100G"


@pytest.mark.parametrize(
    "wrong", [{"learning_rate": 0}, {"learning_rate": 1.5}, {"optimizer_beta1": 1}, {"lr_power": 0.05}, {"seed": -2}]
)
def test_bounds_hold(wrong):
    _, problems = parse(GROUPS, {key: Raw(value, "") for key, value in wrong.items()})
    assert [p.keys for p in problems] == [tuple(wrong)]
