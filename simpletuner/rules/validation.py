"""Validation images and held-out losses: what is set but shows nothing, and what excludes each other."""

from __future__ import annotations

import os
from collections.abc import Iterator

from simpletuner.config import Config
from simpletuner.errors import Problem
from simpletuner.rules.findings import error, notice
from simpletuner.tracking.options import Logging
from simpletuner.validation import sizes
from simpletuner.validation.options import Evaluation, Validation

OFF, PREVIEW = "validation_disable", "validation_preview"
SERVED = "SIMPLETUNER_JOB_ID"  # set for a run that the server started


def negative_prompt_is_used(config: Config) -> Problem | None:
    validation = config[Validation]
    if validation.validation_negative_prompt and (validation.validation_guidance_real or 1.0) <= 1.0:
        message = "the negative prompt is not used without real guidance above 1"
        return notice(message, "validation_negative_prompt", "validation_guidance_real")
    return None


def previews_appear(config: Config) -> Problem | None:
    if config[Validation].validation_preview and config[Validation].validation_disable:
        return notice(f"{OFF} is on: no previews will appear", PREVIEW, OFF)
    return None


def previews_are_seen(config: Config) -> Problem | None:
    validation = config[Validation]
    watched = config[Logging].webhook_config or os.environ.get(SERVED)
    if validation.validation_preview and not validation.validation_disable and not watched:
        message = "previews go to the event log only: there is no webhook and no server"
        return notice(message, PREVIEW, "webhook_config", fix="start the run from simpletuner server, or set a webhook")
    return None


def one_adapter_source(config: Config) -> Problem | None:
    keys = ("validation_adapter_path", "validation_adapter_config")
    if all(getattr(config[Validation], key) for key in keys):
        return error(f"{keys[0]} and {keys[1]} both name adapters", *keys, fix=f"move the path into {keys[1]}")
    return None


def both_eval_intervals(config: Config) -> Problem | None:
    keys = ("eval_steps_interval", "eval_epoch_interval")
    if all(getattr(config[Evaluation], key) for key in keys):
        return notice(f"{keys[0]} and {keys[1]} are both set: both run", *keys, fix="keep one, unless that is meant")
    return None


def sizes_are_readable(config: Config) -> Iterator[Problem]:
    if not config[Validation].validation_disable:
        key = "validation_resolution"
        yield from sizes.parse(config[Validation].validation_resolution, where=config.origin(key))[1]


def prompts_are_used(config: Config) -> Problem | None:
    prompts = {"validation_prompt", "user_prompt_library"}
    if prompts <= config.given and config[Validation].validation_disable:
        return notice(f"prompts are set, but {OFF} is on", OFF, "validation_prompt")
    return None
