"""What a configuration says of its model, put together: family, adapter, and all that pictures are made with.

A run and `generate` both ask here, so that the same words give the same picture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from simpletuner.adapters import options as adapter_options
from simpletuner.adapters.kinds import KINDS
from simpletuner.config import Config
from simpletuner.data.cache import TensorCache
from simpletuner.data.keys import text_key
from simpletuner.memory.options import Memory
from simpletuner.models import FamilyRecord, families
from simpletuner.models.options import Model, ModelMemory
from simpletuner.optim.options import Optimizer
from simpletuner.protocols import Adapter
from simpletuner.training.options import Speed, Training
from simpletuner.training.precision import DTYPES, Precision
from simpletuner.types import Size


def record(config: Config) -> FamilyRecord:
    return families()[config[Model].model_family]


def load_family(config: Config, precision: Precision) -> Any:
    """Finds all parts of the model; downloads nothing large and loads nothing yet."""
    model, parts, own = config[Model], config[ModelMemory], record(config)
    family = own.load()(
        model,
        *(config[group] for group in own.options),
        flavour=own.flavour(model.model_flavour),
        dtype=precision.dtype,
        base_dtype=DTYPES[config[Memory].base_dtype(config[Speed].mixed_precision)],
        vae_dtype=DTYPES["bf16" if model.vae_dtype == "default" else model.vae_dtype],
        seed=config[Training].seed,
        tiling=parts.vae_enable_tiling,
        slicing=parts.vae_enable_slicing,
    )
    family.prepare()
    return family


def attach_adapter(config: Config, denoiser: nn.Module) -> Adapter:
    """The adapter that the configuration describes, inside the model, which computes what it did."""
    dtype = torch.bfloat16 if config[Optimizer].optimizer == "adamw_bf16" else torch.float32
    kind, options = KINDS[config[Model].model_type], config[adapter_options.Adapter]
    adapter: Adapter = kind.load().build(options, record(config).targets, seed=config[Training].seed, dtype=dtype)
    adapter.attach(denoiser)
    return adapter


def facts(config: Config) -> dict[str, str]:
    """What is written into a picture besides its own settings and the base."""
    return {"flavour": config[Model].model_flavour, "sampler": "euler"}


def base_id(family: Any) -> str:
    """16 hex digits that name the base model's weights and their precision."""
    return family.denoiser_fingerprint()[:16]


def latent_shape(family: Any) -> Callable[[Size], tuple[int, int, int, int]]:
    """(1, C, H, W) of the latent of a picture's size."""

    def shape(size: Size) -> tuple[int, int, int, int]:
        return 1, family.latent_channels, size.height // family.latent_factor, size.width // family.latent_factor

    return shape


def embedding(texts: TensorCache) -> Callable[[str], Mapping[str, Tensor]]:
    """The cached embeddings of one text, with a batch axis of 1."""
    return lambda text: {name: value[None] for name, value in texts.read(text_key(text, texts.encoder)).items()}


def vae_loader(config: Config, family: Any, device: torch.device) -> Callable[[], nn.Module]:
    """Loads the VAE each time it is needed, or once if it may stay."""
    if not config[ModelMemory].keep_vae_loaded:
        return lambda: family.load_vae(device)
    return functools.cache(lambda: family.load_vae(device))
