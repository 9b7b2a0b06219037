"""Where this run's weights wait while they are not used: the options of offloading, made into what carries them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from simpletuner import machine
from simpletuner.config import Config
from simpletuner.errors import ConfigError
from simpletuner.memory import budget, groups, parts
from simpletuner.memory.activations import ActivationStore, Kept, Parked
from simpletuner.memory.moves import moves
from simpletuner.memory.options import Memory, Offload
from simpletuner.memory.residency import Residency, Resident
from simpletuner.memory.stream import Streamed
from simpletuner.models import families
from simpletuner.models.options import Model
from simpletuner.protocols import Functional, Home

Stay = Callable[[], AbstractContextManager[Any]]
CPU = torch.device("cpu")


def home(config: Config, device: torch.device) -> Home | None:
    """Where the denoiser's tensors are loaded to: those of blocks that move stay in RAM; None if none do."""
    shapes = families()[config[Model].model_family].shapes(config[Model])
    chosen = moves(config[Offload], shapes.num_blocks).chosen
    if not chosen:
        return None
    waiting = {prefix for index, prefix in enumerate(shapes.block_paths()) if index in chosen}
    return lambda name: CPU if ".".join(name.split(".")[:2]) in waiting else device


def residency(config: Config, functional: Functional | None, device: torch.device) -> Residency:
    """Of the blocks and their modulations, which wait together. ConfigError if the adapter needs whole modules."""
    offload = config[Offload]
    found = moves(offload, len(functional.blocks) if functional else 1)
    if not found:
        return Resident()
    if functional is None:
        key = "enable_group_offload" if offload.enable_group_offload else "blocks_to_swap"
        message = f"{key}: this kind of adapter needs all layers on the device"
        raise ConfigError(message, fix=f"remove {key}, or train a LoRA")
    blocks = [block for block in functional.order if block.index in found.chosen]
    most = budget.pinnable(machine.look().ram_bytes) or None
    return Streamed(blocks, device, depth=found.depth, ahead=found.ahead, folder=found.folder, most_pinned=most)


def activations(config: Config, device: torch.device) -> ActivationStore:
    """Where the inputs of recomputed blocks wait."""
    return Parked(device) if config[Memory].gradient_checkpointing_backend == "offload" else Kept()


def wanders(config: Config) -> bool:
    """Whether the denoiser leaves the device during the run, so that its addresses change."""
    offload = config[Offload]
    return offload.enable_model_cpu_offload or offload.offload_during_save


def during_save(config: Config, denoiser: nn.Module, functional: Functional | None) -> Stay:
    """Makes room while a checkpoint is written."""
    return _aside(denoiser, functional) if config[Offload].offload_during_save else nullcontext


def decoding(
    config: Config, denoiser: nn.Module, functional: Functional | None, device: torch.device
) -> Callable[[nn.Module], AbstractContextManager[None]]:
    """The stage on which a VAE decodes: alone on the device, with model offload."""
    if not config[Offload].enable_model_cpu_offload:
        return lambda vae: nullcontext()

    @contextmanager
    def alone(vae: nn.Module) -> Iterator[None]:
        with _aside(denoiser, functional)(), parts.visiting([vae], device):
            yield

    return alone


def encoders(config: Config, load: Callable[[Any], Mapping[str, Any]], device: torch.device) -> Mapping[str, Any]:
    """Text encoders as the options have them wait."""
    return _placed(config, load, device, config[Offload].group_offload_text_encoder)


def vae(config: Config, load: Callable[[Any], nn.Module], device: torch.device) -> nn.Module:
    """The VAE, likewise."""
    return _placed(config, lambda where: {"vae": load(where)}, device, config[Offload].group_offload_vae)["vae"]


def encode(config: Config, device: torch.device, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose first argument is a module or a mapping with some: they are on the device while it runs."""
    if not config[Offload].offload_during_startup:
        return function

    def visited(held: Any, *rest: Any) -> Any:
        modules = [
            one for one in (held.values() if isinstance(held, Mapping) else [held]) if isinstance(one, nn.Module)
        ]
        with parts.visiting(modules, device):
            return function(held, *rest)

    return visited


def _placed(
    config: Config, load: Callable[[Any], Mapping[str, Any]], device: torch.device, grouped: bool
) -> Mapping[str, Any]:
    offload = config[Offload]
    grouped = grouped and offload.enable_group_offload
    if not grouped:
        return load(CPU if offload.offload_during_startup else device)
    found = load(CPU)
    depth = moves(offload, offload.group_offload_blocks_per_group + 1).depth
    for module in _modules(found):
        groups.stream(module, device, depth=depth, ahead=offload.group_offload_use_stream)
    return found


def _modules(held: Mapping[str, Any]) -> Sequence[nn.Module]:
    return [one for one in held.values() if isinstance(one, nn.Module)]


def _aside(denoiser: nn.Module, functional: Functional | None) -> Stay:
    blocks = list(functional.order) if functional else []
    return partial(parts.aside, denoiser, blocks)
