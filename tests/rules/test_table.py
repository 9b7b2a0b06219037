"""The table of all rules: complete, each with its case, and all of them heard at once."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from rules import test_elsewhere
from rules.cases import CPU, LORA, TABLES, functions, machine

from simpletuner import retired, rules
from simpletuner.check import check, on_machine
from simpletuner.config import load
from simpletuner.machine import AMD

TOPICS = [path.stem for path in sorted(Path(__file__).parent.glob("test_*.py")) if path != Path(__file__)]
MODULES = [importlib.import_module(f"rules.{name}") for name in TOPICS]
CASES = [case for module in MODULES for case in getattr(module, "CASES", ())]
OF_CONTENTS = {9, 11, 52, 53}  # test_contents.py


@pytest.mark.parametrize("number", range(1, 58))
def test_every_rule_of_the_contract_has_a_function_and_a_case(number):
    if number in test_elsewhere.NUMBERS:
        assert not functions(number) and any(f"_{number}_" in name for name in vars(test_elsewhere))
        return
    assert functions(number)
    tested = {case.rule for case in CASES if case.number == number}
    untested = [rule for rule in functions(number) if rule not in tested]
    assert not untested or (number in OF_CONTENTS and all("contents" in rule.__module__ for rule in untested))


def test_no_number_is_beyond_the_contract_and_no_own_rule_goes_untested():
    assert {number for table in TABLES for number in table} <= set(range(1, 58))
    own = {*rules.FURTHER_RULES, *rules.FURTHER_HARDWARE_RULES}
    assert own <= {case.rule for case in CASES}


def test_defaults_break_no_rule(config):
    assert rules.check(config({})) == []


def test_a_finding_names_every_place_of_its_keys(config, tmp_path):
    (tmp_path / "c.json").write_text('{"max_train_steps": 5}')
    loaded, _ = load(tmp_path / "c.json", {"num_train_epochs": 1}, {})
    (problem,) = rules.check(loaded)
    assert problem.where == f"{tmp_path / 'c.json'}:1:2 and command line" and problem.exit_code == 2


def test_all_rules_run(config):
    broken = {
        "num_train_epochs": 1,
        "maximum_image_size": 9000,
        "resolution": 7,
        "lr_warmup_steps": 500,
        "mixed_precision": "no",
    }
    assert len([p for p in rules.check(config(broken)) if p.severity == "error"]) == 5


def test_a_rule_speaks_beside_the_word_that_its_option_is_not_there_yet(config, monkeypatch):
    monkeypatch.setattr(retired, "NOT_YET", retired.NOT_YET | {"blocks_to_swap", "enable_model_cpu_offload"})
    checked = check(None, {"max_train_steps": 1, "blocks_to_swap": 4, "enable_model_cpu_offload": True}, {})
    errors = [p.message for p in checked.problems if p.severity == "error"]
    assert sum("not yet available" in message for message in errors) == 2
    assert sum("move the same weights" in message for message in errors) == 1


@pytest.mark.parametrize("given", [{"push_checkpoints_to_hub": True}, {"hub_model_id": "me/mine"}], ids=str)
def test_what_has_no_effect_is_told_once(config, given):
    """By the reader where the feature is not there yet, else by a rule."""
    checked = check(None, {"max_train_steps": 1} | given, {})
    assert len([p for p in checked.problems if p.keys and p.keys[0] in given]) == 1


def test_the_machine_is_asked_only_by_those_who_would_start_the_run(config):
    checked = check(None, LORA | {"max_train_steps": 1, "optimizer": "bnb-lion"}, {})
    assert not any(p.area == "hardware" for p in checked.problems)
    (found,) = [p for p in on_machine(checked, machine(other=AMD)).problems if p.area == "hardware"]
    assert found.exit_code == 5 and found.where == "command line"
    assert any("slow on the CPU" in p.message for p in on_machine(checked, CPU).problems)


def test_rules_load_no_torch():
    program = "import sys, simpletuner.rules, simpletuner.check; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
