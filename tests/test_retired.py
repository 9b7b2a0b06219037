"""Every key that people's files hold has a meaning here, a reason, or a suggestion."""

from __future__ import annotations

import pytest

from simpletuner import retired, schema
from simpletuner.config import load
from simpletuner.groups import FORMER, GROUPS, OPTIONS
from simpletuner.schema import GIVEN, Raw

# All options of a run, those of later versions included.
DOCUMENTED = """
model_type model_family model_flavour pretrained_model_name_or_path pretrained_transformer_model_name_or_path
pretrained_transformer_subfolder pretrained_vae_model_name_or_path pretrained_t5_model_name_or_path revision variant
vae_dtype cache_dir tokenizer_max_length t5_padding data_backend_config resolution resolution_type minimum_image_size
maximum_image_size target_downsample_size max_upscale_threshold aspect_bucket_rounding caption_strategy
instance_prompt prepend_instance_prompt only_instance_prompt disable_multiline_split caption_dropout_probability
parquet_caption_column parquet_filename_column data_backend_sampling conditioning_multidataset_sampling
allow_dataset_oversubscription cache_dir_text cache_dir_vae vae_batch_size text_encoder_batch_size vae_cache_ondemand
vae_cache_disable text_cache_ondemand text_cache_disable vae_cache_scan_behaviour skip_file_discovery
image_processing_batch_size read_batch_size write_batch_size max_workers metadata_update_interval
aws_max_pool_connections dataloader_prefetch dataloader_prefetch_qlen image_pixel_limit debug_aspect_buckets
debug_dataset_loader print_filenames print_sampler_statistics output_dir max_train_steps num_train_epochs
strict_epoch_limit train_batch_size gradient_accumulation_steps seed resume_from_checkpoint allow_config_drift
allow_topology_change use_ema ema_decay ema_device ema_update_interval ema_warmup_steps nonfinite_action deterministic
stop_timeout i_know_what_i_am_doing lora_type lora_rank lora_alpha lora_dropout flux_lora_module_type lora_init_type
flux_lora_target peft_lora_target_modules init_lora lycoris_config init_lokr_norm assistant_lora_path
assistant_lora_weight_name assistant_lora_strength assistant_lora_inference_strength disable_assistant_lora
lora_format lora_metadata flow_schedule_shift flow_schedule_auto_shift flow_sigmoid_scale flow_use_uniform_schedule
flow_use_beta_schedule flow_beta_schedule_alpha flow_beta_schedule_beta flow_cubic_schedule_weights mixflow_enabled
flow_custom_timesteps flow_timesteps_mode flux_fast_schedule flux_guidance_mode flux_guidance_value flux_guidance_min
flux_guidance_max flux_attention_masked_training flux_attention_mask_mode kontext_reference_time loss_type
huber_schedule huber_c masked_loss_probability masked_loss_normalise offset_noise noise_offset
noise_offset_probability input_perturbation input_perturbation_steps tread_config scheduled_sampling_max_step_offset
scheduled_sampling_strategy scheduled_sampling_probability scheduled_sampling_prob_start scheduled_sampling_prob_end
scheduled_sampling_ramp_steps scheduled_sampling_start_step scheduled_sampling_ramp_shape scheduled_sampling_sampler
scheduled_sampling_grid scheduled_sampling_target scheduled_sampling_reflexflow scheduled_sampling_reflexflow_alpha
scheduled_sampling_reflexflow_beta1 scheduled_sampling_reflexflow_beta2 learning_rate optimizer optimizer_config
optimizer_beta1 optimizer_beta2 adam_weight_decay adam_epsilon lr_scheduler lr_warmup_steps lr_end lr_num_cycles
lr_power lr_scale lr_scale_sqrt max_grad_norm grad_clip_method gradient_precision optimizer_release_gradients
optimizer_cpu_offload_method optimizer_offload_gradients prodigy_steps base_model_precision base_model_default_dtype
quantize_via quantize_cache quantize_cache_dir text_encoder_1_precision text_encoder_2_precision
gradient_checkpointing gradient_checkpointing_interval gradient_checkpointing_backend offload_during_startup
enable_group_offload group_offload_type group_offload_blocks_per_group group_offload_use_stream
group_offload_to_disk_path group_offload_text_encoder group_offload_vae enable_model_cpu_offload blocks_to_swap
vae_enable_tiling vae_enable_slicing keep_vae_loaded offload_during_save accelerator_cache_clear_interval
quantization_config mixed_precision attention_mechanism sageattention_usage fuse_qkv_projections dynamo_backend
dynamo_mode dynamo_fullgraph dynamo_dynamic dynamo_use_regional_compilation disable_tf32 torch_num_threads
validation_disable validation_step_interval validation_epoch_interval validate_after_step validate_after_epoch
validation_on_startup disable_benchmark validation_prompt user_prompt_library validation_prompt_library
validation_negative_prompt validation_disable_unconditional num_validation_images validation_resolution
validation_guidance validation_guidance_real validation_cfg_batched validation_no_cfg_until_timestep
validation_num_inference_steps validation_seed validation_randomize validation_seed_source validation_preview
validation_preview_steps validation_image_format validation_image_quality validation_multigpu
validation_lycoris_strength ema_validation validation_input validation_using_datasets validation_stitch_input_location
validation_adapter_path validation_adapter_name validation_adapter_strength validation_adapter_mode
validation_adapter_config evaluation_type pretrained_evaluation_model_name_or_path eval_steps_interval
eval_epoch_interval eval_timesteps num_eval_images eval_dataset_id eval_dataset_pooling eval_loss_disable
checkpoint_step_interval checkpoint_epoch_interval checkpoints_total_limit checkpointing_rolling_steps
checkpoints_rolling_total_limit checkpoints_keep_every checkpoints_keep_best checkpoints_best_metric
disk_low_threshold disk_low_action disk_low_script post_checkpoint_script modelspec_comment report_to
tracker_project_name tracker_run_name tracker_image_layout logging_dir webhook_config webhook_reporting_interval
push_to_hub hub_model_id push_checkpoints_to_hub model_card_private model_card_safe_for_work model_card_note
post_upload_script gpu_mode gpu_ids num_processes num_machines machine_rank main_process_ip main_process_port
same_network accelerate_config accelerate_extra_args find_unused_parameters fsdp_enable fsdp_version
fsdp_reshard_after_forward fsdp_cpu_offload
"""
# Names of former versions.
CALLED_OTHERWISE = """
checkpointing_steps save_total_limit validation_steps flux_lora_init flux_guidance_scale fused_qkv_projections
use_dora musubi_blocks_to_swap accelerate_visible_devices adam_beta1 adam_beta2 vae_cache_preprocess
ignore_final_epochs ema_cpu_only flux_schedule_shift flux_schedule_auto_shift flux_use_uniform_schedule
flux_use_beta_schedule flux_beta_schedule_alpha flux_beta_schedule_beta flow_matching_sigmoid_scale flux adam_bfloat16
use_prodigy_optimizer use_adafactor_optimizer use_8bit_adam
"""
# Read, and without effect.
WITHOUT_EFFECT = """
snr_gamma snr_weight use_soft_min_snr soft_min_snr_sigma_data rescale_betas_zero_snr timestep_bias_strategy
timestep_bias_begin timestep_bias_end timestep_bias_multiplier timestep_bias_portion
disable_segmented_timestep_sampling training_scheduler_timestep_spacing inference_scheduler_timestep_spacing
validation_guidance_rescale validation_noise_scheduler compress_disk_cache checkpointing_use_tempdir
push_to_hub_background fully_unload_text_encoder set_grads_to_none fsdp_cpu_ram_efficient_loading
delete_invalid_checkpoints disable_bucket_pruning ignore_missing_files hash_filenames preserve_data_backend_cache
override_dataset_config aspect_bucket_disable_rebuild text_embed_full_cache aspect_bucket_alignment
aspect_bucket_worker_count enable_multiprocessing fsdp_limit_all_gathers fsdp_state_dict_type fsdp_auto_wrap_policy
fsdp_transformer_layer_cls_to_wrap ema_foreach_disable validation_torch_compile scheduled_sampling_order
aspect_ratio_bucketing aspect_ratio_bucket_min aspect_ratio_bucket_max repeats ez_model_type seed_for_each_device
merge_environment_config crop crop_style crop_aspect allow_tf32 validation_torch_compile_mode
cache_clear_validation_prompts configs_dir
"""
# Not offered; a star stands for any ending.
REFUSED = """
controlnet control controlnet_* ramtorch_controlnet train_text_encoder text_encoder_lr text_encoder_limit
save_text_encoder freeze_encoder_* text_encoder_3_precision text_encoder_4_precision
custom_text_encoder_intermediary_layers layer_freeze_strategy singlora_ramp_up_steps slider_lora_target init_lora_step
init_lora_ema ramtorch ramtorch_* musubi_block_swap_device gradient_checkpointing_segment_stride
gradient_checkpointing_offload_* sdnq_* quantize_activations sla_config deepspeed_config offload_param_path
context_parallel_* fsdp_activation_checkpointing fuse_optimizer distillation_method distillation_config twinflow_*
xm_* nextlat_* internal_guidance_* validation_internal_guidance_scale layersync_* crepa_* irepa_* urepa_*
mixflow_gamma diffusion_blocks_config diff2flow_* delete_unwanted_images delete_problematic_images refiner_training*
unet_attention_slice pretrained_unet_* pretrained_gemma_* qwen_text_encoder_* data_aesthetic_score
validation_guidance_skip_* framerate validation_num_video_frames audio_* vae_enable_temporal_roll
vae_enable_patch_conv max_grounding_entities pretrained_grounding_* enable_nsfw_check nsfw_* delete_nsfw_images
trust_remote_code delete_model_after_load enable_watermark validation_external_* custom_tracker publishing_config
ltx_* sd3_* hidream_* sana_* non_ema_revision
"""


def findings(**values):
    return load(None, values, {})[1]


NEW = {"activation_memory_budget"}  # after the list was made


def test_every_documented_option_is_declared():
    assert {*DOCUMENTED.split(), *NEW} == set(OPTIONS)


def test_what_is_to_come_is_declared():
    assert set(OPTIONS) >= retired.NOT_YET
    assert set(OPTIONS) >= retired.NOT_YET_HARMLESS.keys() and set(retired.QUIET.split()) <= retired.NOT_YET
    for key, values in retired.NOT_YET_VALUES.items():
        assert values <= {name for name, _ in OPTIONS[key].choices} and key not in retired.NOT_YET


def test_no_option_is_also_refused_or_without_effect():
    assert [key for key in OPTIONS if retired.settle(key, "x", "")[0]] == []


def test_no_key_stands_in_two_tables():
    names = [*OPTIONS, *retired.answered(), *(former for option in OPTIONS.values() for former in option.former)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("key", CALLED_OTHERWISE.split())
def test_a_former_name_leads_to_an_option(key):
    new = FORMER.get(key) or retired.FORMER_SWITCHES[key][1]
    assert new in OPTIONS


@pytest.mark.parametrize("key", WITHOUT_EFFECT.split())
def test_a_key_without_effect_gives_one_notice_with_the_reason(key):
    known, finding = retired.settle(key, "1", "config.json:3:1")
    assert known and finding.severity == "notice" and "has no effect: " in finding.message
    assert finding.where == "config.json:3:1"


@pytest.mark.parametrize("key", [key.replace("*", "_anything").replace("__", "_") for key in REFUSED.split()])
def test_a_refused_key_is_an_error_unless_its_value_switches_it_off(key):
    known, finding = retired.settle(key, "something", "")
    assert known and finding.severity == "error" and "is not offered: " in finding.message
    for value in (False, "false", None, "none", "", 0, "0", []):
        known, finding = retired.settle(key, value, "")
        assert known and finding.severity == "notice"


INERT = {
    "peft_lora_mode": "Standard",
    "validation_method": "simpletuner-local",
    "text_encoder_3_precision": "no_change",
    "text_encoder_4_precision": "no_change",
    "validation_guidance_skip_scale": 2.8,
    "validation_guidance_skip_layers_start": "0.01",
    "validation_guidance_skip_layers_stop": 0.2,
    "framerate": "25",
    "musubi_block_swap_device": "cpu",
    "singlora_ramp_up_steps": "1e3",
    "context_parallel_comm_strategy": "allgather",
}


@pytest.mark.parametrize("key", INERT)
def test_a_value_that_changes_nothing_is_accepted_and_no_other_is(key):
    (notice,) = findings(**{key: INERT[key]})
    assert notice.severity == "notice" and "has no effect: " in notice.message
    for other in ("other", 26, True, [1]):
        (problem,) = findings(**{key: other})
        assert problem.severity == "error" and "is not offered: " in problem.message


def another(option):
    """A value that the option takes and that is not its default."""
    if option.choices:
        return next(name for name, _ in option.choices if [name] != option.default and name != option.default)
    if option.kind == "bool":
        return not option.default
    if option.kind in ("int", "float"):
        numbers = (v for v in (0, 1, 2, 3, 30) if v != option.default)
        return next(v for v in numbers if schema.parse(GROUPS, {option.key: Raw(v, "")})[1] == [])
    return {"list": [1], "object": {"a": 1}}.get(option.kind, "something")


def switched_on(option):
    """What the option depends on, set so that it has an effect."""
    if option.when is None:
        return {}
    value = option.when.values[0]
    return {option.when.key: another(OPTIONS[option.when.key]) if value is GIVEN else value}


@pytest.mark.parametrize("key", sorted(retired.NOT_YET - {"fsdp_version"}))
def test_an_option_to_come_is_refused_and_its_default_is_accepted(key):
    option = OPTIONS[key]
    first = switched_on(option)

    def about_it(value):
        return [p for p in findings(**first, **{key: value}) if p.keys == (key,)]

    assert about_it(option.default) == [] and about_it(str(option.default)) == []
    found = about_it(another(option))
    if any(p.severity == "error" and "model_flavour" not in p.keys for p in findings(**first)):
        assert found == []  # the feature that it shapes has been refused, and that is enough
    else:
        (problem,) = found
        assert problem.severity == ("notice" if key in retired.NOT_YET_HARMLESS else "error")
        assert problem.where == "command line" and problem.exit_code == (2 if problem.severity == "error" else 0)


def test_what_shapes_a_feature_to_come_is_not_reported_beside_it():
    assert findings(ema_decay=0.9) == []  # the rules say that it has no effect
    assert [p.keys for p in findings(ema_decay=0.9, use_ema=True)] == [("use_ema",)]


def test_a_flavours_own_value_may_be_written_out():
    adapter = "ostris/FLUX.1-schnell-training-adapter"
    assert findings(model_flavour="schnell", assistant_lora_path=adapter) == findings(model_flavour="schnell")
    assert len(findings(model_flavour="schnell", assistant_lora_path="mine")) == 2


def test_running_a_model_as_it_is_written_is_here_already():
    assert findings(dynamo_backend="no") == findings(dynamo_backend=False) == []


def test_only_the_value_that_wins_is_looked_at(tmp_path):
    (tmp_path / "config.json").write_text('{"optimizer": "prodigy"}')
    assert load(tmp_path / "config.json", {"optimizer": "adamw_bf16"}, {})[1] == []


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"validation_steps": 7}, ("validation_step_interval", 7)),
        ({"checkpointing_steps": "7"}, ("checkpoint_step_interval", 7)),
        ({"save_total_limit": 3}, ("checkpoints_total_limit", 3)),
        ({"flux_guidance_scale": 3.5}, ("flux_guidance_value", 3.5)),
        ({"adam_beta1": 0.8}, ("optimizer_beta1", 0.8)),
        ({"flux_schedule_shift": 3}, ("flow_schedule_shift", 3.0)),
        ({"adam_bfloat16": True}, ("optimizer", "adamw_bf16")),
        ({"use_adafactor_optimizer": "yes"}, ("optimizer", "adafactor")),
        ({"ignore_final_epochs": "true"}, ("strict_epoch_limit", False)),
        ({"ema_cpu_only": 1}, ("ema_device", "cpu")),
        ({"scheduled_sampling_sampler": "dpm"}, ("scheduled_sampling_sampler", "unipc")),
        ({"lr_scheduler": "cosine_with_warmup"}, ("lr_scheduler", "cosine")),
        ({"caption_strategy": "instance_prompt"}, ("caption_strategy", "instanceprompt")),
        ({"resume_from_checkpoint": "never"}, ("resume_from_checkpoint", "none")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_former_name_is_used_and_said_once(written, read):
    config, problems = load(None, written, {})
    (key, value), ((old, _),) = read, written.items()
    assert config.values()[key] == value
    (notice,) = problems
    assert notice.severity == "notice" and old in notice.message and key in notice.message


def test_full_aliases_are_silent():
    config, problems = load(None, {"flux_lora_init": "gaussian", "attention_mechanism": "sdpa"}, {})
    assert config.values()["lora_init_type"] == "gaussian" and problems == []


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"use_dora": "YES"}, "use_dora=yes is read as flux_lora_module_type=dora"),
        ({"vae_cache_preprocess": 0}, "vae_cache_preprocess=0 is read as vae_cache_ondemand=true"),
        ({"accelerate_visible_devices": "0,1"}, "accelerate_visible_devices is now called gpu_ids"),
        ({"use_prodigy_optimizer": True}, "use_prodigy_optimizer=true is read as optimizer=prodigy"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_former_name_of_something_to_come_says_both(written, told):
    notice, error = findings(**written)
    assert notice.severity == "notice" and told in notice.message
    assert error.severity == "error" and "not yet available" in error.message


@pytest.mark.parametrize("key", retired.FORMER_SWITCHES)
def test_a_former_switch_in_its_other_state_says_nothing_and_else_must_be_true_or_false(key):
    state = retired.FORMER_SWITCHES[key][0]
    assert findings(**{key: not state}) == findings(**{key: str(not state)}) == []
    (problem,) = findings(**{key: "perhaps"})
    assert problem.severity == "error" and "is not true or false" in problem.message


def test_a_constant_rate_with_a_warmup_goes_by_its_own_name_whichever_source_says_so(tmp_path):
    (tmp_path / "config.json").write_text('{"lr_scheduler": "constant"}')
    config, (notice,) = load(tmp_path / "config.json", {"lr_warmup_steps": "10"}, {})
    assert config.values()["lr_scheduler"] == "constant_with_warmup" and notice.severity == "notice"
    assert "config.json:1:2" in notice.where
    config, problems = load(tmp_path / "config.json", {"lr_warmup_steps": 0}, {})
    assert config.values()["lr_scheduler"] == "constant" and problems == []


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("base_model_precision", "int8-sdnq", "int8-compute"),
        ("base_model_precision", "fp8-native", "fp8-compute"),
        ("base_model_precision", "fp8-transformerengine", "fp8-compute"),
        ("base_model_precision", "int8dq-torchao", "int8-torchao"),
        ("base_model_precision", "int8dq-int4-torchao", "int4-torchao"),
        ("base_model_precision", "fp8wo-torchao", "fp8-torchao"),
        ("base_model_precision", "fp8uz-quanto", "fp8-quanto"),
        ("text_encoder_2_precision", "uint4-sdnq", "int8-compute"),
        ("mixed_precision", "FP8", "fp8-compute"),
        ("optimizer", "sdnq-adamw8bit", "ao-adamw8bit"),
        ("optimizer", "adamw_schedulefree+aggressive", "adamw_schedulefree"),
        ("gradient_checkpointing_backend", "torch-ffn", "gradient_checkpointing_interval"),
        ("gradient_checkpointing_backend", "unsloth-ffn", "gradient_checkpointing_interval"),
        ("flux_lora_target", "controlnet", "kontext"),
        ("flux_lora_target", "all+ffs+embedder+controlnet", "kontext"),
        ("sageattention_usage", "training+inference", "use inference"),
        ("report_to", "wandb,swanlab", "webhook"),
        ("report_to", ["comet_ml"], "webhook"),
        ("fsdp_version", "1", "use 2"),
    ],
)
def test_a_refused_value_is_one_error_with_what_to_use_instead(key, value, fix):
    (problem,) = findings(**{key: value})
    assert problem.severity == "error" and "is not offered: " in problem.message and fix in problem.fix


@pytest.mark.parametrize(("key", "values"), retired.NOT_YET_VALUES.items())
def test_a_choice_to_come_says_so(key, values):
    for value in values:
        (problem,) = findings(**{key: value.upper()})
        assert problem.severity == "error" and "not yet available" in problem.message and problem.keys == (key,)


def test_flow_matching_is_the_only_kind_of_prediction():
    assert [p.severity for p in findings(prediction_type="flow_matching")] == ["notice"]
    assert [p.severity for p in findings(prediction_type="epsilon")] == ["error"]


def test_bookkeeping_of_editors_and_launchers_is_ignored():
    assert (
        findings(**{key: "x" for key in ("$schema", "_comment", "__disabled_fields__", "__active_tab__", "local_rank")})
        == []
    )


def test_the_right_word_comes_first_in_the_fix():
    (problem,) = findings(lora_rnak=4)
    assert problem.message == 'unknown option "lora_rnak"' and problem.where == "command line"
    assert problem.fix == 'did you mean "lora_rank"?   more: simpletuner help lora_rank'
