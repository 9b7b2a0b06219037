import pytest

from simpletuner.errors import has_errors
from simpletuner.memory.options import Memory
from simpletuner.optim.options import Optimizer
from simpletuner.schema import options
from simpletuner.training.drift import compare, kind
from simpletuner.training.options import Saving, Speed, Training

STORED = {
    "train_batch_size": 1, "lora_rank": 16, "learning_rate": 1e-4, "validation_step_interval": 100, "seed": 42,
    "validation_resolution": [512, 512], "flow_schedule_shift": None,
}  # fmt: skip


def drift(allow=False, know=False, **changes):
    return compare(STORED, STORED | changes, allow_config_drift=allow, i_know_what_i_am_doing=know)


def test_equal_configurations_have_no_drift_and_tuples_equal_lists():
    assert drift() == [] and drift(validation_resolution=(512, 512)) == []


def test_what_changes_nothing_in_training_is_applied_and_listed():
    (problem,) = drift(validation_step_interval=50)
    assert problem.severity == "notice" and problem.message.startswith("validation_step_interval: 100 -> 50")


def test_a_rate_applies_from_the_next_step():
    (problem,) = drift(learning_rate=5e-5)
    assert problem.severity == "notice" and "next step" in problem.message


@pytest.mark.parametrize("change", [{"seed": 1}, {"flow_schedule_shift": 3.0}, {"train_batch_size": 2}])
def test_what_changes_the_run_asks_and_can_be_accepted(change):
    (problem,) = drift(**change)
    assert problem.severity == "error" and problem.exit_code == 2 and "allow_config_drift" in problem.fix
    assert not has_errors(drift(allow=True, **change))


def test_i_know_accepts_the_batch_size_only():
    assert not has_errors(drift(know=True, train_batch_size=2))
    assert has_errors(drift(know=True, seed=2))


def test_another_thing_to_train_is_never_accepted():
    (problem,) = drift(allow=True, know=True, lora_rank=8)
    assert problem.severity == "error" and "output_dir" in problem.fix


def test_all_differences_are_reported_together_and_one_sided_options_are_none():
    assert len(drift(seed=1, lora_rank=8, learning_rate=1e-5)) == 3
    assert compare({"gone": 1}, {"new": 2}) == []


def test_the_options_of_the_trainer_fall_into_the_classes_of_the_contract():
    kinds = {key: kind(key) for key in options([Training, Saving, Speed, Memory, Optimizer])}
    asks = {key for key, what in kinds.items() if what == "asks"}
    assert asks == {
        "train_batch_size", "gradient_accumulation_steps", "seed", "base_model_precision", "base_model_default_dtype",
        "optimizer", "optimizer_config", "optimizer_beta1", "optimizer_beta2", "adam_weight_decay", "adam_epsilon",
        "gradient_precision",
    }  # fmt: skip
    notice = {key for key, what in kinds.items() if what == "notice"}
    assert notice == {key for key in kinds if key.startswith("lr_")} | {
        "learning_rate", "max_grad_norm", "grad_clip_method",
    }  # fmt: skip
    assert {kinds[k] for k in ("max_train_steps", "checkpoint_step_interval", "gradient_checkpointing")} == {"free"}
