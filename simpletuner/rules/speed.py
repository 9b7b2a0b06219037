"""What makes steps faster, and where it does nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simpletuner.adapters.kinds import KINDS
from simpletuner.adapters.options import Adapter
from simpletuner.config import Config
from simpletuner.errors import Problem
from simpletuner.memory.options import Memory
from simpletuner.models.options import Model
from simpletuner.rules.findings import notice
from simpletuner.surfaces import shown
from simpletuner.training.options import Speed

JOINED, REGIONAL = "fuse_qkv_projections", "dynamo_use_regional_compilation"
BY_DEFAULT: dict[str, tuple[Any, ...]] = {
    "attention_mechanism": ("diffusers",),
    "dynamo_backend": ("auto", "no"),
    "dynamo_mode": ("", "default"),
    "dynamo_fullgraph": (False,),
    "dynamo_dynamic": (False,),
    "activation_memory_budget": (1.0,),
}


def whole_modules(config: Config) -> str:
    """The setting with which a model runs as its modules are, not as blocks of ours; empty if there is none."""
    kind = config[Model].model_type
    if not KINDS[kind].base_stays:
        return f"model_type={kind}"
    dropout = config[Adapter].lora_dropout
    return f"lora_dropout={dropout:g}" if dropout else ""


def modules_run_as_they_are(config: Config) -> Iterator[Problem]:
    cause = whole_modules(config)
    for key, plain in BY_DEFAULT.items():
        value = getattr(config[Memory if key == "activation_memory_budget" else Speed], key)
        if cause and value not in plain:
            message = f"{key}={shown(value)} has no effect: with {cause} the model runs as PyTorch has it"
            yield notice(message, key, cause.partition("=")[0])


def products_are_joined(config: Config) -> Problem | None:
    if not config[Speed].fuse_qkv_projections:
        return None
    if cause := whole_modules(config):
        return notice(f"{JOINED} has no effect with {cause}", JOINED, cause.partition("=")[0])
    return notice(f"{JOINED} has no effect: q, k and v of a frozen base are one product in any case", JOINED)


def blocks_are_compiled_alone(config: Config) -> Problem | None:
    if config[Speed].dynamo_use_regional_compilation or not config.applies(REGIONAL):
        return None
    message = f"{REGIONAL}=false has no effect: blocks are compiled once for each kind"
    return notice(message, REGIONAL, fix="dynamo_backend=auto, which also records whole steps, joins them")
