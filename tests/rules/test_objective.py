import pytest
from rules.cases import FULL, Case, speaks_only_when_broken

from simpletuner.config import load
from simpletuner.rules import objective

SHIFT, AUTO = objective.SHIFTS
BETA = {"flow_use_beta_schedule": True}
SCHNELL, DEV, KONTEXT = ({"model_flavour": name} for name in ("schnell", "dev", "kontext"))
FAST, ASSISTANT, TIME = "flux_fast_schedule", "disable_assistant_lora", "kontext_reference_time"
RANGE = {"flux_guidance_mode": "random-range", objective.LOW: 5}
AS_IT_IS, ELSEWHERE = objective.schnell_as_it_is, objective.references_as_elsewhere
CASES = [
    *(
        Case(28, objective.times, {**BETA, key: value}, "both choose how times are drawn", (key, *BETA), {key: None})
        for key, value in (
            ("mixflow_enabled", True), ("flow_use_uniform_schedule", True), ("flow_custom_timesteps", "0.5"),
            (FAST, True), ("flow_cubic_schedule_weights", "1,2,1"),
        )
    ),
    Case(28, objective.times, {"flow_custom_timesteps": "1001"}, "outside 0 to 1000", ("flow_custom_timesteps",),
         {"flow_custom_timesteps": "1000"}),
    Case(29, objective.times, {**SCHNELL, **BETA}, "replaces this flavour's fast schedule", tuple(BETA), DEV, "notice"),
    Case(30, objective.times, {SHIFT: 3, AUTO: True}, "flow_schedule_auto_shift is off", (SHIFT, AUTO), {AUTO: False},
         "notice"),
    Case(31, objective.unshifted_modes, {"flow_custom_timesteps": "0.5", SHIFT: 3}, "is not shifted", (SHIFT,),
         {SHIFT: None}, "notice"),
    Case(31, objective.unshifted_modes, {FAST: True, AUTO: True}, f"{FAST} is not shifted", (FAST,), {FAST: False},
         "notice"),
    Case(32, objective.guidance_range, RANGE, "above flux_guidance_max", (objective.LOW, objective.HIGH),
         {objective.HIGH: 5}),
    *(
        Case(33, objective.guidance_is_taken, {"model_flavour": name, objective.VALUE: 3.5},
             f"{name} takes no guidance", (objective.VALUE,), mended, "notice")
        for name, mended in (("schnell", DEV), ("libreflux", {objective.VALUE: 1.0}))
    ),
    Case(34, AS_IT_IS, {**SCHNELL, ASSISTANT: True}, "without its assistant", (ASSISTANT,), DEV, "notice"),
    Case(34, AS_IT_IS, {**SCHNELL, FAST: False}, "off its fast schedule", (FAST,), {FAST: True}, "notice"),
    Case(34, AS_IT_IS, {**SCHNELL, **FULL}, "trained in full", ("model_type",), DEV, "notice"),
    Case(56, ELSEWHERE, {**KONTEXT, TIME: "zero"}, "other tools", (TIME,), {TIME: "same"}, "notice"),
    Case(56, ELSEWHERE, {**KONTEXT, TIME: "zero"}, "other tools", (TIME,), DEV, "notice"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_objective(case, config):
    speaks_only_when_broken(case, config)


def test_a_flavours_own_values_do_not_count_as_the_users(config):
    """schnell trains on a fast schedule by itself; a shift that nobody set is not worth a word."""
    chosen, _ = load(None, {"max_train_steps": 100, **SCHNELL}, {})
    for rule in (objective.times, objective.schnell_as_it_is):
        assert list(rule(chosen)) == []
    assert objective.unshifted_modes(chosen) is None
