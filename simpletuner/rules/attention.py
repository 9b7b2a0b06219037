"""The attention kernel: what it can be used for."""

from __future__ import annotations

from simpletuner.config import Config
from simpletuner.errors import Problem
from simpletuner.kernels.packages import SAGE as SAGE_PACKAGE
from simpletuner.models.flux.options import FluxOptions
from simpletuner.rules.findings import error, notice
from simpletuner.rules.packages import installed
from simpletuner.rules.speed import whole_modules
from simpletuner.training.options import SAGE, Speed, Training

KERNEL, MASKS = "attention_mechanism", "flux_attention_masked_training"
DRIFTING = ("cudnn", "xformers")  # PyTorch knows them as such: sums of the backward pass in whatever order
WITHOUT_MASKS = ("cudnn", "flash-attn-2", "flash-attn-3", *SAGE)


def sage_is_for_validation(config: Config) -> Problem | None:
    kernel = config[Speed].attention_mechanism
    if kernel not in SAGE or whole_modules(config):
        return None
    if installed(SAGE_PACKAGE.module):
        return notice(f"{kernel} is used in validation only: it has no gradient, and training uses SDPA", KERNEL)
    message = f"{kernel} is not installed: training and validation use SDPA"
    return notice(message, KERNEL, fix=f"{SAGE_PACKAGE.install}, to speed up validation")


def masked_layers_use_sdpa(config: Config) -> Problem | None:
    kernel = config[Speed].attention_mechanism
    if config[FluxOptions].flux_attention_masked_training and kernel in WITHOUT_MASKS:
        return notice(f"{kernel} takes no masks: layers with a mask use SDPA", MASKS, KERNEL)
    return None


def deterministic_kernels_repeat(config: Config) -> Problem | None:
    kernel = config[Speed].attention_mechanism
    if config[Training].deterministic and kernel in DRIFTING:
        message = f"{kernel} does not repeat bit for bit, which deterministic asks for"
        return error(message, KERNEL, "deterministic", fix=f"{KERNEL}=diffusers")
    return None
