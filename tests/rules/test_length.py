import pytest
from rules.cases import Case, speaks_only_when_broken

from simpletuner.rules import length

KEYS = ("max_train_steps", "num_train_epochs")
CASES = [
    Case(1, length.not_both_lengths, {"num_train_epochs": 1}, "both set", KEYS, {"num_train_epochs": 0}),
    Case(2, length.some_length, {"max_train_steps": 0}, "nothing says how long", KEYS, {"num_train_epochs": 1}),
    Case(40, length.warmup_ends, {"lr_warmup_steps": 101}, "101 is longer than the run of 100",
         ("lr_warmup_steps", "max_train_steps"), {"lr_warmup_steps": 100}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_length(case, config):
    speaks_only_when_broken(case, config)


def test_warm_up_of_a_run_in_epochs_is_not_judged(config):
    assert length.warmup_ends(config({"max_train_steps": 0, "num_train_epochs": 1, "lr_warmup_steps": 9})) is None
