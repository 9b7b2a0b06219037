import pytest
from rules.cases import FULL, LORA, OUR_OWN, Case, speaks_only_when_broken

from simpletuner import retired
from simpletuner.check import check
from simpletuner.rules.conditions import conditions_hold

LORA_ONLY = {
    "lora_rank": 4, "lora_alpha": 4.0, "lora_dropout": 0.1, "flux_lora_module_type": "rslora",
    "lora_init_type": "gaussian", "flux_lora_target": "mlp", "peft_lora_target_modules": "to_q",
    "lora_format": "comfyui",
}  # fmt: skip
BETA = {"flow_use_beta_schedule": True}
CASES = [
    Case(OUR_OWN, conditions_hold, broken, f"{[*broken][0]} has no effect unless {said}", (key,), mended, "notice")
    for broken, said, key, mended in (
        ({"lr_power": 2}, "lr_scheduler=polynomial", "lr_scheduler", {"lr_scheduler": "polynomial"}),
        ({"lr_power": 2}, "lr_scheduler=polynomial", "lr_power", {"lr_power": 0.8}),
        ({"lr_num_cycles": 2}, "lr_scheduler=cosine_with_restarts|sine", "lr_num_cycles", {"lr_scheduler": "sine"}),
        ({"flow_beta_schedule_alpha": 3}, "flow_use_beta_schedule=true", "flow_use_beta_schedule", BETA),
        ({"flux_guidance_max": 5}, "flux_guidance_mode", "flux_guidance_max", {"flux_guidance_mode": "random-range"}),
        *(({key: value} | FULL, "model_type=lora", key, LORA) for key, value in LORA_ONLY.items()),
    )
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conditions(case, config):
    speaks_only_when_broken(case, config)


def test_without_effect_and_not_there_yet_is_told_once(config):
    key = "ema_update_interval"
    assert key in retired.NOT_YET
    found = check(None, {"max_train_steps": 1, key: 7}, {}).problems
    assert [p.message for p in found if key in p.keys] == [f"{key} has no effect unless use_ema=true"]
