"""Each rule speaks up for one configuration and keeps quiet for its neighbour."""

from __future__ import annotations

import json

import pytest

from simpletuner import rules
from simpletuner.check import check
from simpletuner.config import load
from simpletuner.errors import has_errors

LENGTH = {"max_train_steps": 100}
BETA = {"flow_use_beta_schedule": True}

FULL, LORA, TORCH = {"model_type": "full"}, {"model_type": "lora"}, {"optimizer": "torch-adamw"}
LORA_ONLY = {
    "lora_rank": 4, "lora_alpha": 4.0, "lora_dropout": 0.1, "flux_lora_module_type": "rslora",
    "lora_init_type": "gaussian", "flux_lora_target": "mlp", "peft_lora_target_modules": "to_q",
    "lora_format": "comfyui",
}  # fmt: skip

# rule, severity, values that break it, a word of the message, and values beside them that are fine
CASES = [
    ("one_length", "error", {"max_train_steps": 5, "num_train_epochs": 1}, "both set", {"num_train_epochs": 0}),
    ("one_length", "error", {"max_train_steps": 0}, "nothing says how long", {"num_train_epochs": 1}),
    ("sizes_together", "error", {"maximum_image_size": 2048}, "belong together", {"target_downsample_size": 1024}),
    ("sizes_together", "error", {"target_downsample_size": 2048}, "belong together", {"maximum_image_size": 2048}),
    (
        "sizes_in_order",
        "error",
        {"minimum_image_size": 2000, "maximum_image_size": 1500, "target_downsample_size": 1024},
        "no image could pass",
        {"minimum_image_size": 1500},
    ),
    (
        "sizes_in_order",
        "error",
        {"maximum_image_size": 1500, "target_downsample_size": 2000},
        "images would grow",
        {"target_downsample_size": 1500},
    ),
    ("resolution_has_its_unit", "error", {"resolution_type": "area"}, "megapixels", {"resolution": 1}),
    ("resolution_has_its_unit", "error", {"resolution": 255}, "below 256 pixels", {"resolution": 256}),
    (
        "resolution_has_its_unit",
        "error",
        {"resolution": 1, "resolution_type": "pixel"},
        "below 256",
        {"resolution_type": "area"},
    ),
    ("resolution_has_its_unit", "error", {"resolution": 64}, "below 256", {"model_flavour": "nano"}),
    (
        "dataset_file_is_there",
        "error",
        {"data_backend_config": "none.json"},
        "no dataset file at",
        {"data_backend_config": None},
    ),
    (
        "base_matches_computation",
        "notice",
        {"base_model_precision": "fp16"},
        "kept in fp16",
        {"base_model_precision": "bf16"},
    ),
    ("one_time_mode", "error", {**BETA, "mixflow_enabled": True}, "both choose how times", {"mixflow_enabled": False}),
    (
        "one_time_mode",
        "error",
        {"flow_custom_timesteps": "1001"},
        "outside 0 to 1000",
        {"flow_custom_timesteps": "1000"},
    ),
    (
        "one_time_mode",
        "notice",
        {"flow_schedule_shift": 3, "flow_schedule_auto_shift": True},
        "auto_shift is off",
        {"flow_schedule_auto_shift": False},
    ),
    (
        "unshifted_modes",
        "notice",
        {"flow_custom_timesteps": "0.5", "flow_schedule_shift": 3},
        "not shifted",
        {"flow_schedule_shift": None},
    ),
    (
        "unshifted_modes",
        "notice",
        {"flux_fast_schedule": True, "flow_schedule_shift": 3},
        "not shifted",
        {"flux_fast_schedule": False},
    ),
    (
        "guidance_range",
        "error",
        {"flux_guidance_mode": "random-range", "flux_guidance_min": 5},
        "above flux_guidance_max",
        {"flux_guidance_max": 5},
    ),
    (
        "negative_prompt_is_used",
        "notice",
        {"validation_negative_prompt": "fog"},
        "not used",
        {"validation_guidance_real": 2},
    ),
    ("validation_sizes", "error", {"validation_resolution": "big"}, "is not a size", {"validation_disable": True}),
    (
        "validation_sizes",
        "notice",
        {"validation_resolution": "1000x1000"},
        "rounded",
        {"validation_resolution": "1024x1024"},
    ),
    ("rate_falls", "error", {"lr_scheduler": "cosine", "lr_end": 1e-4}, "not below", {"lr_end": 1e-5}),
    ("warmup_ends", "error", {"lr_warmup_steps": 101}, "longer than the run of 100", {"lr_warmup_steps": 100}),
    ("bf16_optimizer", "error", {"mixed_precision": "no"}, "trains bf16 weights", {"optimizer": "torch-adamw"}),
    (
        "bf16_optimizer",
        "error",
        {"base_model_precision": "fp32"},
        "trains bf16 weights",
        {"base_model_precision": "bf16"},
    ),
    ("updates_are_kept", "error", FULL | TORCH, "torch-adamw rounds small updates away", {"optimizer": "adamw_bf16"}),
    ("updates_are_kept", "error", FULL | TORCH, "weights in bf16", {"base_model_precision": "fp32"}),
    ("updates_are_kept", "error", FULL | TORCH, "weights in bf16", {"base_model_default_dtype": "fp32"}),
    ("updates_are_kept", "error", FULL | TORCH, "weights in bf16", {"mixed_precision": "no"}),
    ("updates_are_kept", "error", FULL | TORCH, "weights in bf16", {"model_type": "lora"}),
    (
        "updates_are_kept",
        "error",
        FULL | TORCH | {"mixed_precision": "fp16"},
        "weights in fp16",
        {"base_model_precision": "fp32"},
    ),
    (
        "updates_are_kept",
        "error",
        FULL | {"base_model_precision": "fp16"},
        "weights in fp16, where adamw_bf16",
        {"base_model_precision": "bf16"},
    ),
    (
        "prompts_are_used",
        "notice",
        {"validation_prompt": "a", "user_prompt_library": "p.json", "validation_disable": True},
        "validation_disable is on",
        {"validation_disable": False},
    ),
    ("conditions_hold", "notice", {"lr_power": 2}, "unless lr_scheduler=polynomial", {"lr_scheduler": "polynomial"}),
    ("conditions_hold", "notice", {"lr_num_cycles": 2}, "cosine_with_restarts|sine", {"lr_scheduler": "sine"}),
    ("conditions_hold", "notice", {"flow_beta_schedule_alpha": 3}, "unless flow_use_beta_schedule=true", BETA),
    (
        "conditions_hold",
        "notice",
        {"flux_guidance_max": 5},
        "unless flux_guidance_mode",
        {"flux_guidance_mode": "random-range"},
    ),
    ("conditions_hold", "notice", {"lr_power": 2}, "has no effect", {"lr_power": 0.8}),
    *(
        ("conditions_hold", "notice", FULL | {key: value}, f"{key} has no effect unless model_type=lora", LORA)
        for key, value in LORA_ONLY.items()
    ),
]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Loads values beside a dataset file that exists."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/multidatabackend.json").write_text("[]")

    def load_values(values):
        loaded, problems = load(None, LENGTH | values, {})
        assert not has_errors(problems), problems
        return loaded

    return load_values


def findings(config, name):
    """What that rule alone says, with its places."""
    (rule,) = [rule for rule in rules.RULES if rule.__name__ == name]
    found = rule(config)
    listed = [found] if hasattr(found, "message") else list(found or ())
    return [p for p in rules.check(config) if p.message in {q.message for q in listed}]


@pytest.mark.parametrize(("name", "severity", "broken", "said", "mended"), CASES, ids=[f"{c[0]}-{c[3]}" for c in CASES])
def test_a_rule_speaks_when_it_is_broken_and_only_then(config, name, severity, broken, said, mended):
    (problem,) = findings(config(broken), name)
    assert problem.severity == severity and said in problem.message
    assert problem.keys and "command line" in problem.where
    assert findings(config(broken | mended), name) == []


def test_every_rule_has_a_case():
    assert {case[0] for case in CASES} == {rule.__name__ for rule in rules.RULES}


@pytest.mark.parametrize(("kind", "count"), [("full", 3), ("lora", 0)])
def test_full_training_has_no_base_to_aim_at_and_no_strength(tmp_path, monkeypatch, kind, count):
    """Told together with the other mistakes, each at its place."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats").mkdir()
    entry = {"type": "local", "instance_data_dir": str(tmp_path / "cats"), "resolution": 1024}
    (tmp_path / "sets.json").write_text(
        json.dumps([{"id": "own"} | entry, {"id": "all", "is_regularization_data": True} | entry])
    )
    strengths = {name: {"prompt": "a", "adapter_strength": s} for name, s in (("whole", 1), ("half", 0.5))}
    (tmp_path / "prompts.json").write_text(json.dumps({"plain": "a"} | strengths))
    values = {"data_backend_config": "sets.json", "user_prompt_library": "prompts.json", "model_type": kind}
    checked = check(None, LENGTH | TORCH | values, {})
    found = [problem for problem in checked.problems if problem.severity == "error"]
    assert len(found) == count and all("model_type" in problem.keys for problem in found), found
    if found:
        assert "would train weights in bf16" in found[0].message
        assert "dataset all is for regularisation" in found[1].message and "sets.json" in found[1].where
        assert "prompt half: adapter_strength is 0.5" in found[2].message and found[2].where == "command line"


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


def test_a_flavours_own_values_do_not_count_as_the_users(config):
    """schnell trains on a fast schedule by itself; a shift that nobody set is not worth a word."""
    loaded, _ = load(None, LENGTH | {"model_flavour": "schnell"}, {})
    assert findings(loaded, "unshifted_modes") == [] and findings(loaded, "one_time_mode") == []
    loaded, _ = load(None, LENGTH | {"model_flavour": "schnell", "flow_use_beta_schedule": True}, {})
    assert [p.severity for p in findings(loaded, "one_time_mode")] == ["notice"]
