"""Whatever people write, every rule answers with findings and never breaks."""

from __future__ import annotations

import random

import pytest
from rules.cases import H100, machine

from simpletuner.check import check, on_machine
from simpletuner.config import OPTIONS
from simpletuner.data.options import ImageEntry
from simpletuner.machine import APPLE

ODD = [
    None, True, 0, -1, 2.5, 1e400, 10**30, "", "none", "nan", "a=b", "~nobody", "~nobody.json", "a\0b", "(", "[1,2]",
    [], {}, ["("], ["~nobody.json"], {"routes": 3}, {"routes": [1, {"selection_ratio": 1e400}]}, {"algo": None},
    {"routes": [{"selection_ratio": 0.5, "start_layer_idx": 1e400, "end_layer_idx": []}]},
]  # fmt: skip
KNOWN = {*OPTIONS, *ImageEntry.model_fields}
FLAVOURS = ("nano", "krea", "schnell", "kontext")
HOMES = ("pretrained_model_name_or_path", "cache_dir", "lycoris_config", "peft_lora_target_modules")


def drawn(numbers: random.Random) -> dict:
    """A handful of options with choices of their own or odd values."""
    values = {"max_train_steps": 5, "model_flavour": numbers.choice(FLAVOURS)}
    for key in numbers.sample(sorted(OPTIONS.keys() - {"model_flavour"}), 8):
        values[key] = numbers.choice([name for name, _ in OPTIONS[key].choices if numbers.random() < 0.9] or ODD)
    return values


@pytest.mark.parametrize("seed", range(60))
def test_no_values_break_a_rule(seed, config):
    values = drawn(random.Random(seed))
    for place in (machine(), machine(H100), machine(other=APPLE)):
        for problem in on_machine(check(None, values, {}), place).problems:
            assert problem.message and set(problem.keys) <= KNOWN


@pytest.mark.parametrize("name", HOMES)
def test_a_home_that_nobody_has_is_told_or_left_to_the_run(name, config):
    given = {"max_train_steps": 5, "model_flavour": "nano", name: "~nobody.json", "lora_type": "lycoris"}
    assert check(None, given, {}).failed
