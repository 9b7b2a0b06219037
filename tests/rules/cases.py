"""What a test of a rule says: the values that break it, and those beside them that do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simpletuner import rules
from simpletuner.machine import Gpu, Machine
from simpletuner.rules.findings import Rule, listed

TABLES = (rules.RULES, rules.DATASET_RULES, rules.HARDWARE_RULES)
OUR_OWN = 0  # number of a rule that the contract does not count
FULL, LORA, TORCH = {"model_type": "full"}, {"model_type": "lora"}, {"optimizer": "torch-adamw"}


@dataclass(frozen=True)
class Case:
    number: int
    rule: Rule
    broken: Mapping[str, Any]
    said: str
    keys: tuple[str, ...]
    mended: Mapping[str, Any]
    severity: str = "error"
    code: int = 2  # exit code of an error
    machine: Machine | None = None
    better: Machine | None = field(default=None)  # a machine on which nothing is wrong

    def __str__(self) -> str:
        return f"{self.number}-{self.rule.__name__}-{self.said}"


def gpu(name: str, capability: tuple[int, int], index: int = 0) -> Gpu:
    return Gpu(index, name, 80 * 10**9, 79 * 10**9, capability)


def machine(*gpus: Gpu, other: str = "") -> Machine:
    return Machine(gpus, 64 * 10**9, 60 * 10**9, 16, other)


CPU = machine()
H100, V100 = gpu("NVIDIA H100", (9, 0)), gpu("NVIDIA V100", (7, 0))


def functions(number: int) -> list[Rule]:
    return [rule for table in TABLES for rule in table.get(number, ())]


def speaks_only_when_broken(case: Case, load) -> None:
    """`load` makes a configuration of values."""
    assert case.number == OUR_OWN or case.rule in functions(case.number)
    here = [case.machine] if case.machine else []
    found = [p for p in listed(case.rule(load(case.broken), *here)) if case.said in p.message]
    assert len(found) == 1, listed(case.rule(load(case.broken), *here))
    assert set(case.keys) <= set(found[0].keys) and found[0].severity == case.severity
    assert found[0].exit_code == (case.code if case.severity == "error" else 0)
    assert found[0].fix or case.severity == "notice"
    there = [case.better or case.machine] if case.machine else []
    assert listed(case.rule(load({**case.broken, **case.mended}), *there)) == []
