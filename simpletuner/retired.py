"""Keys in people's files that are no options here: former names, keys without effect, refused keys, keys to come.

Tables only. `settle` sorts one written key into what the reader should do with it.
"""

from __future__ import annotations

import fnmatch
from typing import Any

from simpletuner.errors import Problem

IGNORED = {
    "$schema",
    "_comment",
    "_origins",
    "_source",
    "_version",
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
}
SILENT_ALIASES = {"flux_lora_init"}  # full aliases: no notice

# (key, written value) -> (key, value to use). None as the new value: leave the key out.
FORMER_VALUES: dict[tuple[str, Any], tuple[str, Any]] = {
    ("use_dora", "true"): ("flux_lora_module_type", "dora"),
    ("vae_cache_preprocess", "false"): ("vae_cache_ondemand", True),
    ("ema_cpu_only", "true"): ("ema_device", "cpu"),
    ("lr_scheduler", "cosine_with_warmup"): ("lr_scheduler", "cosine"),
    ("caption_strategy", "instance_prompt"): ("caption_strategy", "instanceprompt"),
    ("resume_from_checkpoint", "never"): ("resume_from_checkpoint", "none"),
    ("gradient_checkpointing_backend", "unsloth"): ("gradient_checkpointing_backend", "offload"),
    ("scheduled_sampling_sampler", "dpm"): ("scheduled_sampling_sampler", "unipc"),
    ("attention_mechanism", "sdpa"): ("attention_mechanism", "diffusers"),
}
FORMER_SWITCHES = {
    key for key, _ in FORMER_VALUES if key.startswith(("use_dora", "vae_cache_pre", "ignore_final", "ema_cpu"))
}

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
    **dict.fromkeys(
        ["strict_epoch_limit", "ignore_final_epochs"],
        "a run given in epochs ends with its last epoch, one in steps with its last step",
    ),
    "validation_torch_compile": "it follows dynamo_backend",
    "scheduled_sampling_order": "the solver has a fixed order",
    **dict.fromkeys(
        ["aspect_ratio_bucketing", "aspect_ratio_bucket_min", "aspect_ratio_bucket_max"],
        "sizes belong into the dataset file",
    ),
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
        "your files are never deleted; unused images are listed with their reason",
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
    **dict.fromkeys(["enable_nsfw_check", "nsfw_*", "delete_nsfw_images"], "filter the folder beforehand"),
    "trust_remote_code": "code from model repositories is never run",
    "delete_model_after_load": "downloads are never deleted; use the hub's own cache tool",
    "enable_watermark": "validation images are not marked",
    **dict.fromkeys(
        ["validation_method", "validation_external_*"], "use post_checkpoint_script with simpletuner generate"
    ),
    "custom_tracker": "use a webhook, or read metrics.jsonl in the run folder",
    "publishing_config": "use post_checkpoint_script to copy files elsewhere",
}
ACCEPTED_VALUES = {("peft_lora_mode", "standard"), ("validation_method", "simpletuner-local")}

# key -> documented default. The features come with later versions; a value that leaves them off is accepted.
NOT_YET: dict[str, Any] = {
    "allow_topology_change": False, "use_ema": False, "ema_decay": 0.995, "ema_device": "cpu", "ema_update_interval": 1,
    "ema_warmup_steps": 0, "init_lora": None, "lycoris_config": "config/lycoris_config.json", "init_lokr_norm": None,
    "assistant_lora_path": None, "assistant_lora_weight_name": None, "assistant_lora_strength": 1.0,
    "assistant_lora_inference_strength": 0.0, "disable_assistant_lora": False, "flow_cubic_schedule_weights": None,
    "flux_attention_masked_training": False, "flux_attention_mask_mode": "auto", "kontext_reference_time": "same",
    "loss_type": "l2", "huber_schedule": "snr", "huber_c": 0.1, "masked_loss_probability": 1.0,
    "masked_loss_normalise": False, "offset_noise": False, "noise_offset": 0.1, "noise_offset_probability": 0.25,
    "input_perturbation": 0.0, "input_perturbation_steps": 0, "tread_config": None,
    "scheduled_sampling_max_step_offset": 0, "scheduled_sampling_strategy": "uniform",
    "scheduled_sampling_probability": 0.0, "scheduled_sampling_prob_start": 0.0, "scheduled_sampling_prob_end": 0.5,
    "scheduled_sampling_ramp_steps": 0, "scheduled_sampling_start_step": 0, "scheduled_sampling_ramp_shape": "linear",
    "scheduled_sampling_sampler": "unipc", "scheduled_sampling_grid": 1000, "scheduled_sampling_target": "rectified",
    "scheduled_sampling_reflexflow": "auto", "scheduled_sampling_reflexflow_alpha": 1.0,
    "scheduled_sampling_reflexflow_beta1": 10.0, "scheduled_sampling_reflexflow_beta2": 1.0,
    "optimizer_release_gradients": False, "optimizer_cpu_offload_method": "none", "optimizer_offload_gradients": False,
    "prodigy_steps": None, "quantize_via": "auto", "quantize_cache": True, "quantize_cache_dir": None,
    "text_encoder_1_precision": "no_change", "text_encoder_2_precision": "no_change", "offload_during_startup": False,
    "enable_group_offload": False, "group_offload_type": "block_level", "group_offload_blocks_per_group": 1,
    "group_offload_use_stream": False, "group_offload_to_disk_path": None, "group_offload_text_encoder": False,
    "group_offload_vae": False, "enable_model_cpu_offload": False, "blocks_to_swap": 0, "offload_during_save": False,
    "quantization_config": None, "attention_mechanism": "diffusers", "sageattention_usage": "inference",
    "fuse_qkv_projections": False, "dynamo_backend": "auto", "dynamo_mode": "", "dynamo_fullgraph": False,
    "dynamo_dynamic": False, "dynamo_use_regional_compilation": True, "conditioning_multidataset_sampling": "random",
    "parquet_caption_column": None, "parquet_filename_column": None, "vae_cache_ondemand": False,
    "vae_cache_disable": False, "text_cache_ondemand": False, "text_cache_disable": False,
    "aws_max_pool_connections": 128, "read_batch_size": 25, "debug_aspect_buckets": False,
    "debug_dataset_loader": False, "print_filenames": False, "print_sampler_statistics": False,
    "skip_file_discovery": "", "vae_cache_scan_behaviour": "recreate", "validation_cfg_batched": False,
    "validation_seed_source": "cpu", "validation_preview": False, "validation_preview_steps": 1,
    "validation_multigpu": "batch-parallel", "validation_lycoris_strength": 1.0, "ema_validation": "comparison",
    "validation_input": None, "validation_using_datasets": False, "validation_stitch_input_location": "left",
    "validation_adapter_path": None, "validation_adapter_name": None, "validation_adapter_strength": 1.0,
    "validation_adapter_mode": "adapter_only", "validation_adapter_config": None, "evaluation_type": "none",
    "pretrained_evaluation_model_name_or_path": "openai/clip-vit-large-patch14-336", "eval_steps_interval": None,
    "eval_epoch_interval": None, "eval_timesteps": 28, "num_eval_images": 4, "eval_dataset_id": None,
    "eval_dataset_pooling": False, "eval_loss_disable": False, "checkpointing_rolling_steps": 0,
    "checkpoints_rolling_total_limit": 1, "checkpoints_keep_best": 0, "checkpoints_best_metric": "loss/val/pooled",
    "disk_low_script": None, "post_checkpoint_script": None, "report_to": "none", "tracker_project_name": "simpletuner",
    "tracker_run_name": None, "tracker_image_layout": "gallery", "webhook_config": None,
    "webhook_reporting_interval": None, "push_to_hub": False, "hub_model_id": None, "push_checkpoints_to_hub": False,
    "model_card_private": True, "model_card_safe_for_work": False, "model_card_note": None, "post_upload_script": None,
    "gpu_mode": "disabled", "gpu_ids": None, "num_processes": 1, "num_machines": 1, "machine_rank": 0,
    "main_process_ip": "127.0.0.1", "main_process_port": 29500, "same_network": True, "accelerate_config": None,
    "accelerate_extra_args": None, "find_unused_parameters": False, "fsdp_enable": False, "fsdp_version": 2,
    "fsdp_reshard_after_forward": True, "fsdp_cpu_offload": False,
}  # fmt: skip
# Names and places that say nothing until their feature is on: any value is harmless, and a notice says so.
NOT_YET_HARMLESS = {
    "hub_model_id", "model_card_private", "model_card_safe_for_work", "model_card_note", "tracker_project_name",
    "tracker_run_name", "tracker_image_layout", "push_checkpoints_to_hub", "lycoris_config", "quantize_via",
    "aws_max_pool_connections", "read_batch_size", "main_process_port", "webhook_reporting_interval",
}  # fmt: skip

PRECISIONS = (
    "int8-quanto int4-quanto int2-quanto fp8-quanto int8-torchao int4-torchao fp8-torchao nf4-bnb int8-bnb "
    "fp8-compute int8-compute"
)
OPTIMIZERS = (
    "adamw_schedulefree prodigy soap muon optimi-lion optimi-stableadamw optimi-adamw optimi-adam optimi-adan "
    "optimi-radam optimi-ranger optimi-sgd bnb-adamw bnb-adamw8bit bnb-adamw-paged bnb-adamw8bit-paged bnb-lion "
    "bnb-lion8bit bnb-lion-paged bnb-lion8bit-paged bnb-ademamix bnb-ademamix8bit bnb-ademamix-paged "
    "bnb-ademamix8bit-paged bnb-adam bnb-adam8bit bnb-adagrad bnb-adagrad8bit ao-adamw8bit ao-adamw4bit ao-adamwfp8 "
    "ao-adamfp8"
)
NOT_YET_VALUES: dict[str, set[str]] = {
    "lora_type": {"lycoris"},
    "flux_lora_module_type": {"dora"},
    "lora_init_type": {"loftq", "olora", "pissa"},
    "base_model_precision": set(PRECISIONS.split()),
    "optimizer": set(OPTIMIZERS.split()),
    "gradient_checkpointing_backend": {"offload"},
    "caption_strategy": {"parquet", "jsonl", "csv", "huggingface"},
    "disk_low_action": {"script"},
}

OFF: tuple[Any, ...] = (False, None, 0, "", "false", "none", "no", "off", "0", "null", "0.0", [], {})


def is_off(value: Any) -> bool:
    """Whether a value switches its feature off."""
    return value in OFF or (isinstance(value, str) and value.strip().lower() in OFF)


def _same(value: Any, default: Any) -> bool:
    if value == default or str(value).strip().lower() == str(default).strip().lower():
        return True
    try:
        return float(value) == float(default)
    except (TypeError, ValueError):
        return False


def _match(table: dict[str, str], key: str) -> str | None:
    return next((text for pattern, text in table.items() if fnmatch.fnmatchcase(key, pattern)), None)


def rename(key: str, value: Any, where: str) -> tuple[str, Any, Problem | None]:
    """(key, value, notice) with former names and former values replaced."""
    written = str(value).strip().lower()
    if key in FORMER:
        new = FORMER[key]
        notice = (
            None
            if key in SILENT_ALIASES
            else Problem(f"{key} is now called {new}", severity="notice", where=where, keys=(new,))
        )
        key, first = new, notice
    else:
        first = None
    if (key, written) in FORMER_VALUES:
        new_key, new_value = FORMER_VALUES[key, written]
        notice = Problem(
            f"{key}={written} is read as {new_key}={str(new_value).lower()}",
            severity="notice",
            where=where,
            keys=(new_key,),
        )
        return new_key, new_value, None if key == "attention_mechanism" else notice
    return key, value, first


def settle(key: str, value: Any, where: str) -> tuple[bool, Problem | None]:
    """(known here, finding) for a key that is no option: a notice, an error, or silence when its feature stays off."""
    if key in IGNORED or key in FORMER_SWITCHES:
        return True, None
    if (reason := _match(NO_EFFECT, key)) is not None:
        return True, Problem(f"{key} has no effect: {reason}", severity="notice", where=where, keys=(key,))
    if key == "prediction_type":
        if _same(value, "flow_matching"):
            return True, Problem(f"{key} has no effect: {FLOW}", severity="notice", where=where, keys=(key,))
        return True, Problem(f"{key}={value} is for other model families", where=where, keys=(key,), fix="remove it")
    if key in NOT_YET:
        if is_off(value) or _same(value, NOT_YET[key]):
            return True, None
        if key in NOT_YET_HARMLESS:
            message = f"{key} has no effect yet: what it belongs to comes with a later version"
            return True, Problem(message, severity="notice", where=where, keys=(key,))
        return True, Problem(
            f"{key} is not yet available in this version",
            where=where,
            keys=(key,),
            fix="remove it, or set it to its default",
        )
    if (reason := _match(NOT_OFFERED, key)) is not None:
        if is_off(value) or (key, str(value).lower()) in ACCEPTED_VALUES:
            return True, Problem(f"{key} is off, and not offered here", severity="notice", where=where, keys=(key,))
        return True, Problem(f"{key} is not offered: {reason}", where=where, keys=(key,), fix="remove it")
    return False, None


def value_to_come(key: str, value: Any, where: str) -> Problem | None:
    """The error for a choice that a later version brings."""
    if str(value).strip().lower() in NOT_YET_VALUES.get(key, ()):
        return Problem(
            f"{key}={value} is not yet available in this version",
            where=where,
            keys=(key,),
            fix=f"simpletuner help {key} shows what is",
        )
    return None
