"""The attention kernel: what it can be used for."""

from __future__ import annotations

from simpletuner.config import Config
from simpletuner.errors import Problem
from simpletuner.models.flux.options import FluxOptions
from simpletuner.rules.findings import notice
from simpletuner.rules.packages import installed
from simpletuner.training.options import SAGE, Speed

KERNEL, MASKS = "attention_mechanism", "flux_attention_masked_training"
WITHOUT_MASKS = ("cudnn", "flash-attn-2", "flash-attn-3", *SAGE)


def sage_is_for_validation(config: Config) -> Problem | None:
    kernel = config[Speed].attention_mechanism
    if kernel not in SAGE:
        return None
    if installed("sageattention"):
        return notice(f"{kernel} is used in validation only: it has no gradient, and training uses SDPA", KERNEL)
    message = f"{kernel} is not installed: training and validation use SDPA"
    return notice(message, KERNEL, fix="pip install sageattention, to speed up validation")


def masked_layers_use_sdpa(config: Config) -> Problem | None:
    kernel = config[Speed].attention_mechanism
    if config[FluxOptions].flux_attention_masked_training and kernel in WITHOUT_MASKS:
        return notice(f"{kernel} takes no masks: layers with a mask use SDPA", MASKS, KERNEL)
    return None
