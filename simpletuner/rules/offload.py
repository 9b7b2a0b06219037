"""Where weights wait while they are not used: one strategy at a time."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.adapters.kinds import KINDS
from simpletuner.adapters.options import Adapter
from simpletuner.config import Config
from simpletuner.errors import Problem
from simpletuner.memory.options import Memory, Offload
from simpletuner.models.options import Model
from simpletuner.rules.findings import error, notice

GROUPS, COMPONENTS, BLOCKS = "enable_group_offload", "enable_model_cpu_offload", "blocks_to_swap"


def one_offload(config: Config) -> Problem | None:
    offload = config[Offload]
    if offload.enable_group_offload and offload.enable_model_cpu_offload:
        fix = f"keep {GROUPS} for the lowest VRAM, and remove {COMPONENTS}"
        return error(f"{GROUPS} and {COMPONENTS} are both on", GROUPS, COMPONENTS, fix=fix)
    return None


def swap_alone(config: Config) -> Problem | None:
    offload = config[Offload]
    other = [key for key in (GROUPS, COMPONENTS) if getattr(offload, key)]
    if offload.enable_group_offload and offload.offload_during_startup:
        for key in ("group_offload_text_encoder", "group_offload_vae"):
            if getattr(offload, key):
                message = f"{key} and offload_during_startup move the same weights"
                return error(message, key, "offload_during_startup", fix=f"keep {key}, which needs the least VRAM")
    if offload.blocks_to_swap and other:
        message = f"{BLOCKS} and {' and '.join(other)} move the same weights"
        fix = f"keep {BLOCKS}, which copies least, and remove {' and '.join(other)}"
        return error(message, BLOCKS, *other, fix=fix)
    return None


def what_moves_is_frozen(config: Config) -> Iterator[Problem]:
    """Copies go one way, so what is trained stays on the device."""
    offload, model = config[Offload], config[Model]
    if KINDS[model.model_type].base_stays:
        return
    for key in (GROUPS, BLOCKS):
        if getattr(offload, key):
            message = f"{key} moves frozen weights, and model_type={model.model_type} trains all of them"
            yield error(message, key, "model_type", fix=f"remove {key}, or train a LoRA")
    if offload.offload_during_save:
        message = f"offload_during_save moves frozen weights, and model_type={model.model_type} has none"
        yield notice(message, "offload_during_save", "model_type")


def what_moves_has_no_dropout(config: Config) -> Problem | None:
    """Dropout is in PEFT's modules, which keep the weights that they have seen."""
    offload, adapter = config[Offload], config[Adapter]
    moving = GROUPS if offload.enable_group_offload else BLOCKS if offload.blocks_to_swap else ""
    if not moving or not adapter.lora_dropout or not KINDS[config[Model].model_type].base_stays:
        return None
    return error(f"{moving} does not go with lora_dropout", moving, "lora_dropout", fix="lora_dropout=0")


def moved_blocks_are_recomputed(config: Config) -> Problem | None:
    offload, memory = config[Offload], config[Memory]
    moving = GROUPS if offload.enable_group_offload else BLOCKS if offload.blocks_to_swap else ""
    every = memory.gradient_checkpointing and memory.gradient_checkpointing_interval == 1
    if not moving or every:
        return None
    key = "gradient_checkpointing_interval" if memory.gradient_checkpointing else "gradient_checkpointing"
    return notice(f"blocks that move are recomputed, whatever {key} says", moving, key)
