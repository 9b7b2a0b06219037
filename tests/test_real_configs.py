"""Configurations as people write them, and all that is said about each.

Each folder of tests/configs/ is somebody's working directory, with config/ in it. expected.txt holds one finding
a line: severity, message and place. Findings about the machine are left out: another has other packages and logins.
EXPECTED=write in the environment writes these files anew; read the difference.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter

import pytest

from simpletuner import check, finding, layers, naming
from simpletuner.cli.surfaces import ROOT
from simpletuner.config import load

CONFIGS = sorted(folder.name for folder in (ROOT / "tests/configs").iterdir())
PICTURES = ("datasets/subject", "datasets/pictures", "dataset/gt_images", "dataset/rgb_images")
RUNNABLE = {"01-lora-from-the-wizard", "10-env-first-months"}  # the rest asks for what is to come or not offered
SLIPS = {"lora_rnak", "flux_shedule_shift"}  # put in on purpose


@pytest.fixture
def home(request, tmp_path, monkeypatch):
    """A copy of somebody's working directory, with the folders of the pictures; the current directory."""
    folder = tmp_path / request.param
    shutil.copytree(ROOT / "tests/configs" / request.param, folder)
    for place in PICTURES:
        (folder / place).mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def told(problems, folder):
    """One line for each finding, with places below `folder` as they are seen from it."""
    chosen = [p for p in problems if "is not installed" not in p.message and p.area != "auth"]
    lines = (f"{p.severity}: {p.message} @ {p.where}".replace(f"{folder}/", "") for p in chosen)
    return "".join(f"{' '.join(line.split())}\n" for line in lines)


@pytest.mark.parametrize("home", CONFIGS, indirect=True)
def test_what_is_said_is_what_is_expected(home):
    files, problems = finding.find(None, None, {})
    checked = check.check(files, {}, {"HOME": "/home/somebody"})
    text = told([*problems, *checked.problems], home)
    expected = ROOT / "tests/configs" / home.name / "expected.txt"
    if os.environ.get("EXPECTED") == "write":
        expected.write_text(text, "utf-8")
    assert text.splitlines() == expected.read_text("utf-8").splitlines()
    assert checked.failed is (home.name not in RUNNABLE)


@pytest.mark.parametrize("home", CONFIGS, indirect=True)
def test_every_key_has_an_answer(home):
    files, _ = finding.find(None, None, {})
    said = [layers.of_file(path, {}) for path in (files.path, files.beneath) if path]
    keys = {key for source in said for layer in source.layers for key, _ in layer}
    assert len(keys) > 15 and {key for key in keys if not naming.known(key)} <= SLIPS
    _, problems = load(files, {}, {})
    assert {p.keys[0] for p in problems if p.message.startswith("unknown option")} == keys & SLIPS


# What guides tell people to write, one proposal after another.
GUIDES = [
    {"--lora_rank": "16", "--lora_alpha": "16", "--lora_dropout": "0.1", "--lora_type": "standard"},
    {"attention_mechanism": "sageattention", "sageattention_usage": "inference"},
    {"attention_mechanism": "xformers"},
    {
        "base_model_precision": "int8-quanto",
        "text_encoder_1_precision": "no_change",
        "base_model_default_dtype": "bf16",
    },
    {"base_model_precision": "nf4-bnb", "optimizer": "bnb-lion8bit-paged", "max_grad_norm": 1.0},
    {"checkpointing_rolling_steps": 50, "checkpoints_rolling_total_limit": "2", "checkpoints_total_limit": 5},
    {"conditioning_multidataset_sampling": "random"},
    {"disk_low_threshold": "100G", "disk_low_action": "wait"},
    {"dynamo_backend": "inductor", "dynamo_mode": "default", "dynamo_fullgraph": "false"},
    {"enable_group_offload": True, "group_offload_type": "block_level", "group_offload_blocks_per_group": 1},
    {"enable_group_offload": "true", "group_offload_use_stream": "true", "group_offload_to_disk_path": "offload"},
    {"enable_model_cpu_offload": True, "gradient_checkpointing": True},
    {"eval_steps_interval": 100, "num_eval_images": 4, "eval_dataset_pooling": "true"},
    {"evaluation_type": "clip", "pretrained_evaluation_model_name_or_path": "openai/clip-vit-large-patch14-336"},
    {"flow_cubic_schedule_weights": [0.1, 0.2, 0.3, 0.4]},
    {"flow_custom_timesteps": "1000,750,500,250"},
    {"flow_schedule_shift": "3", "flow_schedule_auto_shift": "false"},
    {"flow_use_beta_schedule": "true", "flow_beta_schedule_alpha": "2.0", "flow_beta_schedule_beta": "2.0"},
    {"flux_attention_masked_training": True, "t5_padding": "zero"},
    {"flux_guidance_mode": "random-range", "flux_guidance_min": "1.0", "flux_guidance_max": "4.0"},
    {"flux_lora_init": "loftq"},
    {"fsdp_enable": True, "fsdp_version": 2, "fsdp_reshard_after_forward": True, "num_processes": 4},
    {"gpu_mode": "auto", "num_processes": "1"},
    {"init_lora": "earlier/pytorch_lora_weights.safetensors"},
    {"lora_type": "lycoris", "lycoris_config": {"algo": "lokr", "factor": 16}, "init_lokr_norm": "1e-3"},
    {"loss_type": "huber", "huber_schedule": "snr", "huber_c": "0.1"},
    {"modelspec_comment": ["trained at home", "on my own pictures"]},
    {"musubi_blocks_to_swap": 18, "gradient_checkpointing": "true"},
    {"num_machines": 2, "machine_rank": 1, "main_process_ip": "10.0.0.1", "main_process_port": "8080"},
    {"offset_noise": True, "noise_offset": "0.02", "noise_offset_probability": "0.25"},
    {"optimizer_config": "betas=0.9,weight_decay=0.01", "optimizer": "optimi-adamw"},
    {"optimizer_cpu_offload_method": "torchao", "optimizer_offload_gradients": "true"},
    {"peft_lora_target_modules": '["to_q", "to_k", "to_v"]'},
    {"push_to_hub": "true", "push_checkpoints_to_hub": "true", "hub_model_id": "somebody/subject"},
    {"quantize_via": "cpu", "base_model_precision": "int8-quanto"},
    {"report_to": "wandb", "tracker_project_name": "flux", "tracker_run_name": "first"},
    {"scheduled_sampling_max_step_offset": 5, "scheduled_sampling_probability": "0.5"},
    {
        "scheduled_sampling_ramp_steps": 1000,
        "scheduled_sampling_prob_end": "0.5",
        "scheduled_sampling_max_step_offset": 3,
    },
    {"skip_file_discovery": "vae,aspect,text,metadata"},
    {"tread_config": {"routes": [{"selection_ratio": 0.5, "start_layer_idx": 2, "end_layer_idx": -2}]}},
    {"use_ema": "true", "ema_decay": "0.995", "ema_update_interval": "100", "ema_device": "accelerator"},
    {"vae_cache_disable": True, "text_cache_disable": True},
    {
        "validation_guidance_real": "3.5",
        "validation_no_cfg_until_timestep": "2",
        "validation_negative_prompt": "blurry",
    },
    {"validation_preview": True, "validation_preview_steps": 2},
    {"webhook_config": [{"webhook_type": "discord", "webhook_url": "https://example.org/hook"}]},
]


@pytest.mark.parametrize("written", GUIDES, ids=[next(iter(guide)) for guide in GUIDES])
def test_what_guides_say_is_read_with_at_most_one_finding_a_key(written):
    _, problems = load(None, {key.removeprefix("--"): value for key, value in written.items()}, {})
    renamed = [p for p in problems if p.severity == "notice" and "is now called" in p.message]
    found = [p for p in problems if p not in renamed]
    assert all(count == 1 for count in Counter(key for p in found for key in p.keys).values()), problems
    assert all("not yet" in p.message or "no effect yet" in p.message for p in found), problems
