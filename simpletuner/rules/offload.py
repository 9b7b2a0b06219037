"""Where weights wait while they are not used: one strategy at a time."""

from __future__ import annotations

from simpletuner.config import Config
from simpletuner.errors import Problem
from simpletuner.memory.options import Offload
from simpletuner.rules.findings import error

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
    if offload.blocks_to_swap and other:
        message = f"{BLOCKS} and {' and '.join(other)} move the same weights"
        fix = f"keep {BLOCKS}, which copies least, and remove {' and '.join(other)}"
        return error(message, BLOCKS, *other, fix=fix)
    return None
