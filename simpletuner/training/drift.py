"""What changed between the configuration of a checkpoint and the present one, and whether a resume may go on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from simpletuner.errors import Problem, Severity

# Another one of these makes another thing of the weights in the checkpoint.
NEVER = frozenset((
    "model_type", "model_family", "model_flavour", "pretrained_model_name_or_path",
    "pretrained_transformer_model_name_or_path", "pretrained_transformer_subfolder", "revision", "variant",
    "lora_type", "lora_rank", "lora_alpha", "flux_lora_module_type", "flux_lora_target", "peft_lora_target_modules",
))  # fmt: skip
NOTICE = frozenset(("learning_rate", "max_grad_norm", "grad_clip_method", "caption_dropout_probability"))
# A resume goes on with another value and is no longer exact; whether that is meant, only the user can say.
ASKS = frozenset((
    "train_batch_size", "gradient_accumulation_steps", "seed", "resolution", "resolution_type", "minimum_image_size",
    "maximum_image_size", "target_downsample_size", "max_upscale_threshold", "aspect_bucket_rounding",
    "caption_strategy", "instance_prompt", "prepend_instance_prompt", "only_instance_prompt",
    "disable_multiline_split", "data_backend_sampling",
    "allow_dataset_oversubscription", "base_model_precision", "base_model_default_dtype", "gradient_precision",
    "loss_type", "optimizer", "optimizer_config", "optimizer_beta1", "optimizer_beta2",
    "adam_weight_decay", "adam_epsilon", "lora_dropout", "vae_dtype", "tokenizer_max_length", "t5_padding",
    "pretrained_vae_model_name_or_path", "pretrained_t5_model_name_or_path", "flux_fast_schedule",
    "flux_guidance_mode", "flux_guidance_value", "flux_guidance_min", "flux_guidance_max",
    "flux_attention_masked_training", "flux_attention_mask_mode", "mixflow_enabled",
))  # fmt: skip

DROPOUT = "caption_dropout_probability"
MOST_NAMES = 3  # of changed pictures in one message


def kind(key: str) -> str:
    """never, asks, notice or free: what a change of this option means for a resume (outputs.md section 5.7)."""
    if key in NEVER:
        return "never"
    if key in ASKS or key.startswith("flow_"):
        return "asks"
    return "notice" if key in NOTICE or key.startswith("lr_") else "free"


def compare(
    stored: Mapping[str, Any],
    present: Mapping[str, Any],
    *,
    allow_config_drift: bool = False,
    i_know_what_i_am_doing: bool = False,
) -> list[Problem]:
    """One finding for each option whose value differs. An error means that the resume must not go on.

    An option that only one side knows is left out: it came or went with a version of the program.
    """
    problems = []
    for key in sorted(set(stored) & set(present)):
        old, new = _plain(stored[key]), _plain(present[key])
        if old == new:
            continue
        message = f"{key}: {_shown(old)} -> {_shown(new)}"
        what = kind(key)
        if what == "never":
            fix = "put the old value back, or start a new run in another output_dir"
            problems.append(Problem(message, keys=(key,), fix=fix))
        elif what == "asks":
            accepted = allow_config_drift or (i_know_what_i_am_doing and key == "train_batch_size")
            fix = "put the old value back, or set allow_config_drift; the run is then no longer exact"
            severity: Severity = "warning" if accepted else "error"
            problems.append(Problem(message, severity=severity, keys=(key,), fix="" if accepted else fix))
        else:
            applies = "applied from the next step" if what == "notice" else "applied"
            problems.append(Problem(f"{message} ({applies})", severity="notice", keys=(key,)))
    return problems


def compare_datasets(
    stored: Sequence[Mapping[str, Any]], present: Sequence[Mapping[str, Any]], *, allow_config_drift: bool = False
) -> list[Problem]:
    """One finding for each dataset that would give other batches than before, with the pictures behind it."""
    old, new = ({d["id"]: d for d in side} for side in (stored, present))
    severity: Severity = "warning" if allow_config_drift else "error"
    fix = "" if allow_config_drift else "put the old state back, or set allow_config_drift; the run is then not exact"
    problems = []
    for id in sorted(set(old) | set(new)):
        if id not in old or id not in new:
            message = f"dataset {id} was {'added' if id in new else 'removed'}"
            problems.append(Problem(message, "config", severity, fix=fix))
        elif old[id]["fingerprint"] != new[id]["fingerprint"]:
            problems.append(Problem(f"dataset {id} {_changed(old[id], new[id])}", "config", severity, fix=fix))
        elif old[id].get(DROPOUT) != new[id].get(DROPOUT):
            message = f"dataset {id}: {DROPOUT}: {old[id].get(DROPOUT)} -> {new[id].get(DROPOUT)} (applied)"
            problems.append(Problem(message, severity="notice", keys=(DROPOUT,)))
    return problems


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs, in a few words: pictures by name if they are few, else settings."""
    before, after = old.get("samples") or {}, new.get("samples") or {}
    names = sorted(path for path in set(before) | set(after) if before.get(path) != after.get(path))
    if names:
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        return f"changed: {', '.join(names[:MOST_NAMES])}{more}"
    settings = [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in ("images", "repeats", "batch_size")
        if old.get(key) != new.get(key)
    ]
    return "changed: " + (", ".join(settings) or "weights, pictures or captions")


def _plain(value: Any) -> Any:
    """As it reads from JSON, so that tuples and paths compare equal to what was stored."""
    return json.loads(json.dumps(value, default=str, sort_keys=True))


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
