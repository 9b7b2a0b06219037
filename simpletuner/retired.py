"""Keys in people's files that are no options here: former names, keys without effect, refused keys, keys to come.

Tables only. `settle` sorts one written key into what the reader should do with it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from simpletuner.errors import Problem
from simpletuner.values import TRUE

IGNORED = {
    "$schema",
    "_comment",
    "_origins",
    "_source",
    "_version",
    "_written",
    "__disabled_fields__",
    "__active_tab__",
    "local_rank",
}

# written -> read as. (Names declared as `Former` beside an option are not repeated here.)
FORMER = {
    "flux_guidance_scale": "flux_guidance_value",
    "fused_qkv_projections": "fuse_qkv_projections",
    "musubi_blocks_to_swap": "blocks_to_swap",
    "accelerate_visible_devices": "gpu_ids",
    "flux_lora_init": "lora_init_type",
    "flux_schedule_shift": "flow_schedule_shift",
    "flux_schedule_auto_shift": "flow_schedule_auto_shift",
    "flux_use_uniform_schedule": "flow_use_uniform_schedule",
    "flux_use_beta_schedule": "flow_use_beta_schedule",
    "flux_beta_schedule_alpha": "flow_beta_schedule_alpha",
    "flux_beta_schedule_beta": "flow_beta_schedule_beta",
    "flow_matching_sigmoid_scale": "flow_sigmoid_scale",
}
SILENT_ALIASES = {"flux_lora_init"}  # full aliases: no notice

# key -> (the state that meant something, key and value to use for it). The other state is the default.
FORMER_SWITCHES: dict[str, tuple[bool, str, Any]] = {
    "use_dora": (True, "flux_lora_module_type", "dora"),
    "vae_cache_preprocess": (False, "vae_cache_ondemand", True),
    "ignore_final_epochs": (True, "strict_epoch_limit", False),
    "ema_cpu_only": (True, "ema_device", "cpu"),
    "flux": (True, "model_family", "flux"),
    "adam_bfloat16": (True, "optimizer", "adamw_bf16"),
    "use_prodigy_optimizer": (True, "optimizer", "prodigy"),
    "use_adafactor_optimizer": (True, "optimizer", "adafactor"),
    "use_8bit_adam": (True, "optimizer", "bnb-adamw8bit"),
}

# (key, written value) -> value to use.
FORMER_VALUES: dict[tuple[str, str], str] = {
    ("lr_scheduler", "cosine_with_warmup"): "cosine",
    ("caption_strategy", "instance_prompt"): "instanceprompt",
    ("resume_from_checkpoint", "never"): "none",
    ("gradient_checkpointing_backend", "unsloth"): "offload",
    ("scheduled_sampling_sampler", "dpm"): "unipc",
    ("attention_mechanism", "sdpa"): "diffusers",
}
SILENT_VALUES = {("attention_mechanism", "sdpa")}  # full synonyms: no notice

FLOW = "flow-matching models have no noise schedule that it could change"
ALWAYS = "this is always so here, or no longer needed"
KEPT = "the dataset index and the content-addressed caches keep themselves up to date"
DECIDED = "the program decides it"
NO_EFFECT = {
    **dict.fromkeys(
        [
            "snr_gamma",
            "snr_weight",
            "use_soft_min_snr",
            "soft_min_snr_sigma_data",
            "rescale_betas_zero_snr",
            "timestep_bias_*",
            "disable_segmented_timestep_sampling",
            "training_scheduler_timestep_spacing",
            "inference_scheduler_timestep_spacing",
            "validation_guidance_rescale",
            "validation_noise_scheduler",
        ],
        FLOW,
    ),
    **dict.fromkeys(
        [
            "compress_disk_cache",
            "checkpointing_use_tempdir",
            "push_to_hub_background",
            "fully_unload_text_encoder",
            "set_grads_to_none",
            "fsdp_cpu_ram_efficient_loading",
        ],
        ALWAYS,
    ),
    "delete_invalid_checkpoints": "broken checkpoints are set aside, never deleted at once",
    **dict.fromkeys(
        [
            "disable_bucket_pruning",
            "ignore_missing_files",
            "hash_filenames",
            "preserve_data_backend_cache",
            "override_dataset_config",
            "aspect_bucket_disable_rebuild",
            "text_embed_full_cache",
            "cache_clear_validation_prompts",
        ],
        KEPT,
    ),
    **dict.fromkeys(
        [
            "aspect_bucket_alignment",
            "aspect_bucket_worker_count",
            "enable_multiprocessing",
            "fsdp_limit_all_gathers",
            "fsdp_state_dict_type",
            "fsdp_auto_wrap_policy",
            "fsdp_transformer_layer_cls_to_wrap",
            "ema_foreach_disable",
        ],
        DECIDED,
    ),
    "validation_torch_compile": "it follows dynamo_backend",
    "validation_torch_compile_mode": "it follows dynamo_mode",
    "configs_dir": "SIMPLETUNER_CONFIG_DIR says where",
    "enable_xformers_memory_efficient_attention": "attention_mechanism chooses the kernel",
    "scheduled_sampling_order": "the solver has a fixed order",
    **dict.fromkeys(
        ["aspect_ratio_bucketing", "aspect_ratio_bucket_min", "aspect_ratio_bucket_max"],
        "sizes belong into the dataset file",
    ),
    **dict.fromkeys(["crop", "crop_style", "crop_aspect"], "it belongs into the dataset file"),
    "allow_tf32": "it is so, unless disable_tf32 says no",
    "repeats": "it belongs into the dataset file",
    **dict.fromkeys(["ez_model_type", "seed_for_each_device", "merge_environment_config"], "it never had an effect"),
}

# pattern -> what to do instead. Values that switch the feature off are accepted with a notice.
NOT_OFFERED = {
    **dict.fromkeys(
        ["controlnet", "control", "controlnet_*", "ramtorch_controlnet"],
        "ControlNet is not trained here; for edits use the kontext flavour with paired images",
    ),
    **dict.fromkeys(
        ["train_text_encoder", "text_encoder_lr", "text_encoder_limit", "save_text_encoder", "freeze_encoder_*"],
        "Flux text encoders stay frozen; embeddings are cached once",
    ),
    **dict.fromkeys(
        ["text_encoder_3_precision", "text_encoder_4_precision", "custom_text_encoder_intermediary_layers"],
        "Flux has two text encoders",
    ),
    "layer_freeze_strategy": "choose layers with flux_lora_target",
    "peft_lora_mode": "use flux_lora_module_type",
    "singlora_ramp_up_steps": "use flux_lora_module_type",
    "slider_lora_target": "choose layers with flux_lora_target",
    **dict.fromkeys(["init_lora_step", "init_lora_ema"], "to continue a run use resume_from_checkpoint"),
    "ramtorch": "use blocks_to_swap or enable_group_offload",
    "ramtorch_*": "use blocks_to_swap or enable_group_offload",
    "musubi_block_swap_device": "swapped blocks live in RAM",
    "gradient_checkpointing_segment_stride": "use gradient_checkpointing_interval",
    "gradient_checkpointing_offload_*": "use gradient_checkpointing_backend=offload",
    "sdnq_*": "use int8-compute, fp8-compute or a quanto kind",
    "quantize_activations": "use base_model_precision=fp8-compute",
    "sla_config": "use attention_mechanism",
    **dict.fromkeys(["deepspeed_config", "offload_param_path"], "use fsdp_enable; adapters need neither"),
    **dict.fromkeys(
        ["context_parallel_*", "fsdp_activation_checkpointing"],
        "Flux sequences fit one GPU; use gradient_checkpointing",
    ),
    "fuse_optimizer": "covered by optimizer_release_gradients",
    **dict.fromkeys(
        [
            "distillation_method",
            "distillation_config",
            "twinflow_*",
            "xm_*",
            "nextlat_*",
            "internal_guidance_*",
            "validation_internal_guidance_scale",
            "layersync_*",
        ],
        "not part of fine-tuning here",
    ),
    **dict.fromkeys(["crepa_*", "irepa_*", "urepa_*"], "representation alignment is not available"),
    **dict.fromkeys(
        ["mixflow_gamma", "diffusion_blocks_config", "diff2flow_*"],
        "only mixflow_enabled is offered; else use the flow_* options",
    ),
    **dict.fromkeys(
        ["delete_unwanted_images", "delete_problematic_images"],
        "your files are never deleted; simpletuner dataset report lists them",
    ),
    **dict.fromkeys(
        [
            "refiner_training*",
            "unet_attention_slice",
            "pretrained_unet_*",
            "pretrained_gemma_*",
            "qwen_text_encoder_*",
            "data_aesthetic_score",
            "validation_guidance_skip_*",
            "ltx_*",
            "sd3_*",
            "hidream_*",
            "sana_*",
        ],
        "for other model families",
    ),
    **dict.fromkeys(
        [
            "framerate",
            "validation_num_video_frames",
            "audio_*",
            "vae_enable_temporal_roll",
            "vae_enable_patch_conv",
            "max_grounding_entities",
            "pretrained_grounding_*",
        ],
        "images only",
    ),
    **dict.fromkeys(
        ["enable_nsfw_check", "nsfw_*", "delete_nsfw_images"],
        "filter the folder beforehand; simpletuner dataset report shows every image",
    ),
    "non_ema_revision": "use revision",
    "trust_remote_code": "code from model repositories is never run",
    "delete_model_after_load": "downloads are never deleted; use the hub's own cache tool",
    "enable_watermark": "validation images are not marked",
    **dict.fromkeys(
        ["validation_method", "validation_external_*"], "use post_checkpoint_script with simpletuner generate"
    ),
    "custom_tracker": "use a webhook, or read metrics.jsonl in the run folder",
    "publishing_config": "use post_checkpoint_script to copy files elsewhere",
}
# Values that change nothing, and that programs write out: accepted with a notice.
ACCEPTED_VALUES: dict[str, Any] = {
    "peft_lora_mode": "standard",
    "validation_method": "simpletuner-local",
    "text_encoder_3_precision": "no_change",
    "text_encoder_4_precision": "no_change",
    "validation_guidance_skip_scale": 2.8,
    "validation_guidance_skip_layers_start": 0.01,
    "validation_guidance_skip_layers_stop": 0.2,
    "framerate": 25,
    "musubi_block_swap_device": "cpu",
    "singlora_ramp_up_steps": 1000,
    "context_parallel_comm_strategy": "allgather",
}

# (pattern of keys, pattern of values) -> (reason, what to do instead): values of the original that come in no version.
SDNQ = ("its kernels are not used here", "use int8-compute, fp8-compute or a quanto kind")
FP8 = ("there is one way to compute in fp8", "use base_model_precision=fp8-compute")
CONTROLNET = ("ControlNet is not trained here", 'for edits use the kontext flavour; else choose "all+ffs+embedder"')
TRACKERS = ("it is not supported", "use a webhook, or read metrics.jsonl in the run folder")
REFUSED_VALUES: dict[tuple[str, str], tuple[str, str]] = {
    ("*_precision", "*-sdnq"): SDNQ,
    ("*_precision", "fp8-native"): FP8,
    ("*_precision", "fp8-transformerengine"): FP8,
    ("mixed_precision", "fp8"): FP8,
    ("*_precision", "int8dq-torchao"): ("that kind is not kept", "the nearest is int8-torchao"),
    ("*_precision", "int8dq-int4-torchao"): ("that kind is not kept", "the nearest is int4-torchao"),
    ("*_precision", "fp8wo-torchao"): ("that kind is not kept", "the nearest is fp8-torchao"),
    ("*_precision", "fp8-int4-torchao"): ("that kind is not kept", "the nearest is int4-torchao"),
    ("*_precision", "fp8uz-quanto"): ("that kind is not kept", "the nearest is fp8-quanto"),
    ("optimizer", "sdnq-*"): ("its kernels are not used here", "use ao-adamw8bit"),
    ("optimizer", "adamw_schedulefree+*"): ("it has no variants here", "use adamw_schedulefree"),
    ("gradient_checkpointing_backend", "*-ffn"): (
        "parts of blocks are not recomputed alone",
        "use gradient_checkpointing_interval, or gradient_checkpointing_backend=offload",
    ),
    ("flux_lora_target", "controlnet"): CONTROLNET,
    ("flux_lora_target", "all+ffs+embedder+controlnet"): CONTROLNET,
    ("sageattention_usage", "training*"): ("SageAttention has no gradient", "use inference"),
    ("report_to", "swanlab"): TRACKERS,
    ("report_to", "comet_ml"): TRACKERS,
    ("report_to", "custom-tracker"): TRACKERS,
    ("fsdp_version", "1"): ("PyTorch has given it up", "use 2"),
}

# Options whose feature comes with a later version; only their defaults are accepted. Each feature shortens this table.
TO_COME = """
conditioning_multidataset_sampling vae_cache_ondemand
vae_cache_disable text_cache_ondemand text_cache_disable vae_cache_scan_behaviour skip_file_discovery
read_batch_size debug_aspect_buckets debug_dataset_loader print_filenames
print_sampler_statistics

allow_topology_change use_ema ema_decay ema_device ema_update_interval ema_warmup_steps

init_lora lycoris_config init_lokr_norm assistant_lora_path assistant_lora_weight_name assistant_lora_strength
assistant_lora_inference_strength disable_assistant_lora

flow_cubic_schedule_weights flux_attention_masked_training flux_attention_mask_mode kontext_reference_time
loss_type huber_schedule huber_c masked_loss_probability masked_loss_normalise offset_noise noise_offset
noise_offset_probability input_perturbation input_perturbation_steps tread_config
scheduled_sampling_max_step_offset scheduled_sampling_strategy scheduled_sampling_probability
scheduled_sampling_prob_start scheduled_sampling_prob_end scheduled_sampling_ramp_steps
scheduled_sampling_start_step scheduled_sampling_ramp_shape scheduled_sampling_sampler scheduled_sampling_grid
scheduled_sampling_target scheduled_sampling_reflexflow scheduled_sampling_reflexflow_alpha
scheduled_sampling_reflexflow_beta1 scheduled_sampling_reflexflow_beta2

optimizer_release_gradients optimizer_cpu_offload_method optimizer_offload_gradients prodigy_steps

validation_cfg_batched validation_seed_source validation_preview validation_preview_steps validation_multigpu
validation_lycoris_strength ema_validation validation_input validation_using_datasets
validation_stitch_input_location validation_adapter_path validation_adapter_name validation_adapter_strength
validation_adapter_mode validation_adapter_config

evaluation_type pretrained_evaluation_model_name_or_path eval_steps_interval eval_epoch_interval eval_timesteps
num_eval_images eval_dataset_id eval_dataset_pooling eval_loss_disable

checkpointing_rolling_steps checkpoints_rolling_total_limit checkpoints_keep_best checkpoints_best_metric
disk_low_script post_checkpoint_script

tracker_project_name tracker_run_name tracker_image_layout webhook_config webhook_reporting_interval push_to_hub
hub_model_id push_checkpoints_to_hub model_card_private model_card_safe_for_work model_card_note
post_upload_script

gpu_mode gpu_ids num_processes num_machines machine_rank main_process_ip main_process_port same_network
accelerate_config accelerate_extra_args find_unused_parameters fsdp_enable fsdp_version
fsdp_reshard_after_forward fsdp_cpu_offload
"""
# Those that say nothing until their feature is on: a notice will do.
QUIET = """
tracker_project_name tracker_run_name tracker_image_layout push_checkpoints_to_hub hub_model_id model_card_private
model_card_safe_for_work model_card_note lycoris_config
read_batch_size main_process_port webhook_reporting_interval
"""
NOT_YET = frozenset(TO_COME.split())
NOT_YET_HARMLESS = {
    **dict.fromkeys(QUIET.split(), "what it belongs to comes with a later version"),
    "strict_epoch_limit": "a run given in epochs ends with its last epoch, one in steps with its last step",
}
OPTIMIZERS = "adamw_schedulefree prodigy soap muon"
# Values to come, of options that are otherwise here.
NOT_YET_VALUES: dict[str, set[str]] = {
    "lora_type": {"lycoris"},
    "flux_lora_module_type": {"dora"},
    "lora_init_type": {"loftq", "olora", "pissa"},
    "optimizer": set(OPTIMIZERS.split()),
    "caption_strategy": {"huggingface"},
    "disk_low_action": {"script"},
    "report_to": {"tensorboard", "wandb", "trackio", "all"},
}

OFF: tuple[Any, ...] = (False, None, 0, "", "false", "none", "no", "off", "0", "null", "0.0", [], {})


def is_off(value: Any) -> bool:
    """Whether a value switches its feature off."""
    return value in OFF or (isinstance(value, str) and value.strip().lower() in OFF)


def _same(value: Any, accepted: str | float) -> bool:
    """Whether a written value is the accepted one, in any spelling: 25, "25.0"."""
    if isinstance(accepted, str):
        return str(value).strip().lower() == accepted
    try:
        return float(value) == accepted
    except (TypeError, ValueError, OverflowError):
        return False


def _match(table: Mapping[str, str], key: str) -> str | None:
    return next((text for pattern, text in table.items() if fnmatch.fnmatchcase(key, pattern)), None)


def answered() -> list[str]:
    """The keys that the tables name in full: what a slip of the finger may have been meant for."""
    return [key for key in (*FORMER, *FORMER_SWITCHES, *NO_EFFECT, *NOT_OFFERED) if "*" not in key]


def rename(key: str, value: Any, where: str) -> tuple[str, Any, Problem | None]:
    """(key, value, notice) with former names and former values replaced."""

    def notice(message: str, new: str) -> Problem:
        return Problem(message, severity="notice", where=where, keys=(new,))

    written = str(value).strip().lower()
    if key in FORMER_SWITCHES and (is_off(value) or written in TRUE):
        state, new_key, new_value = FORMER_SWITCHES[key]
        if is_off(value) is state:
            return key, value, None
        return new_key, new_value, notice(f"{key}={written} is read as {new_key}={str(new_value).lower()}", new_key)
    finding = None
    if key in FORMER:
        key, old = FORMER[key], key
        finding = None if old in SILENT_ALIASES else notice(f"{old} is now called {key}", key)
    if (new_value := FORMER_VALUES.get((key, written))) is not None:
        if (key, written) in SILENT_VALUES:
            return key, new_value, finding
        return key, new_value, notice(f"{key}={written} is read as {key}={new_value}", key)
    return key, value, finding


def settle(key: str, value: Any, where: str) -> tuple[bool, Problem | None]:
    """(known here, finding) for a key that is no option: a notice, an error, or silence where there is none to make."""
    if key in IGNORED:
        return True, None
    if key in FORMER_SWITCHES:  # `rename` has taken the state that means something
        if is_off(value) or str(value).strip().lower() in TRUE:
            return True, None
        return True, Problem(f"{key}: {value} is not true or false", where=where, keys=(key,), fix="remove it")
    if (reason := _match(NO_EFFECT, key)) is not None:
        return True, Problem(f"{key} has no effect: {reason}", severity="notice", where=where, keys=(key,))
    if key == "prediction_type":
        if is_off(value) or str(value).strip().lower() == "flow_matching":
            return True, Problem(f"{key} has no effect: {FLOW}", severity="notice", where=where, keys=(key,))
        return True, Problem(f"{key}={value} is for other model families", where=where, keys=(key,), fix="remove it")
    if (reason := _match(NOT_OFFERED, key)) is not None:
        if key in ACCEPTED_VALUES and _same(value, ACCEPTED_VALUES[key]):
            message = f"{key} has no effect: {value} changes nothing, and no other value is offered"
            return True, Problem(message, severity="notice", where=where, keys=(key,))
        if is_off(value):
            return True, Problem(f"{key} is off, and not offered here", severity="notice", where=where, keys=(key,))
        return True, Problem(f"{key} is not offered: {reason}", where=where, keys=(key,), fix="remove it")
    return False, None


def refused_value(key: str, value: Any, where: str) -> Problem | None:
    """The error for a written value of an option that no version has; lists and comma lists are looked through."""
    words = value if isinstance(value, list) else str(value).split(",")
    for word in (str(w).strip().lower() for w in words):
        for (keys, values), (reason, fix) in REFUSED_VALUES.items():
            if fnmatch.fnmatchcase(key, keys) and fnmatch.fnmatchcase(word, values):
                return Problem(f"{key}={word} is not offered: {reason}", where=where, keys=(key,), fix=fix)
    return None


def value_to_come(key: str, value: Any, default: Any, where: str) -> Problem | None:
    """The finding for a parsed value of an option, if it asks for what a later version brings."""
    if value == default:
        return None
    if key in NOT_YET_HARMLESS:
        message = f"{key} has no effect yet: {NOT_YET_HARMLESS[key]}"
        return Problem(message, severity="notice", where=where, keys=(key,))
    if key in NOT_YET:
        message = f"{key} is not yet available in this version"
        return Problem(message, where=where, keys=(key,), fix="remove it, or set it to its default")
    for word in value if isinstance(value, list) else [value]:
        if word in NOT_YET_VALUES.get(key, ()):
            message = f"{key}={word} is not yet available in this version"
            return Problem(message, where=where, keys=(key,), fix=f"simpletuner help {key} shows what is")
    return None


def with_warmup(scheduler: Any, warmup: Any, where: str) -> Problem | None:
    """The notice if a constant rate, as written, is one with a warm-up."""
    try:
        climbs = float(warmup) > 0
    except (TypeError, ValueError):
        return None  # the parser says what is wrong with it
    if str(scheduler).strip().lower() != "constant" or not climbs:
        return None
    message = "lr_scheduler=constant with lr_warmup_steps is read as lr_scheduler=constant_with_warmup"
    return Problem(message, severity="notice", where=where, keys=("lr_scheduler", "lr_warmup_steps"))
