"""What a configuration says of its model, put together: family, adapter, and all that pictures are made with.

A run and `generate` both ask here, so that the same words give the same picture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from simpletuner import residence
from simpletuner.adapters import options as adapter_options
from simpletuner.adapters.kinds import KINDS
from simpletuner.config import Config
from simpletuner.data.cache import TensorCache
from simpletuner.data.fill import Encoders, Images
from simpletuner.data.keys import text_key
from simpletuner.memory.options import Memory, Offload
from simpletuner.models import FamilyRecord, families
from simpletuner.models.options import Model, ModelMemory
from simpletuner.optim.options import Optimizer
from simpletuner.plan.quantised import DENOISER, pipeline_settings
from simpletuner.protocols import Adapter
from simpletuner.quantization import probe as probes
from simpletuner.quantization import shelf
from simpletuner.quantization.packer import Packer, Via
from simpletuner.training.options import Speed, Training
from simpletuner.training.precision import DTYPES, Precision
from simpletuner.types import Size


def record(config: Config) -> FamilyRecord:
    return families()[config[Model].model_family]


def load_family(config: Config, precision: Precision, suspicious: bool = False) -> Any:
    """Finds all parts of the model; downloads nothing large and loads nothing yet.

    suspicious: the last run ended without a word, so what was kept of quantised weights is read and compared first.
    """
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
        quantizers=quantizers(config, precision, suspicious),
    )
    family.prepare()
    return family


def quantizers(config: Config, precision: Precision, suspicious: bool = False) -> dict[str, Packer]:
    """By part of the model: those whose matrices are kept in fewer bits."""
    memory, root = config[Memory], None
    if memory.quantize_cache:
        root = shelf.root_of(memory.quantize_cache_dir)
    made = {
        part: Packer(kind, precision.dtype, root=root, suspicious=suspicious, via=_streamed(memory.quantize_via))
        for part, kind in zip(record(config).encoders, memory.text_kinds, strict=True)
        if kind
    }
    if memory.quantised:
        made[DENOISER] = Packer(
            memory.base_model_precision,
            DTYPES[memory.base_dtype(config[Speed].mixed_precision)],
            keep=record(config).keep_precise,
            via=memory.quantize_via,
            settings=pipeline_settings(memory),
            root=root,
            suspicious=suspicious,
        )
    return made


def _streamed(via: Via) -> Via:
    """Diffusers' own quantising is for the denoiser."""
    return "auto" if via == "pipeline" else via


def probe(config: Config, device: torch.device) -> None:
    """HardwareError if a kind of quantised weights that is asked for does not work on this device."""
    memory = config[Memory]
    asked: dict[str, str] = {"base_model_precision": memory.base_model_precision} if memory.quantised else {}
    asked |= {f"text_encoder_{n}_precision": kind for n, kind in enumerate(memory.text_kinds, 1) if kind}
    probes.check(asked, device)


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


def text_encoders(config: Config, family: Any, device: torch.device) -> Encoders:
    """Where the options have them; on the CPU if memory runs out there."""
    cpu = torch.device("cpu")
    spare = Encoders(functools.partial(family.load_text_encoders, cpu), family.encode_text)
    return Encoders(
        functools.partial(residence.encoders, config, family.load_text_encoders, device),
        residence.encode(config, device, family.encode_text),
        spare=None if device == cpu else spare,
    )


def images(config: Config, family: Any, device: torch.device) -> Images:
    """What encodes images; in tiles if memory runs out without."""

    def encoding(tiling: bool, spare: Images | None = None) -> Images:
        load = functools.partial(family.load_vae, tiling=tiling)
        return Images(
            functools.partial(residence.vae, config, load, device),
            residence.encode(config, device, family.encode_images),
            family.vae_fingerprint(tiling),
            family.latent_channels,
            family.latent_factor,
            spare,
            family.vae_tile,
        )

    return encoding(False, None if family.tiling else encoding(True))


def vae_loader(config: Config, family: Any, device: torch.device) -> Callable[[], nn.Module]:
    """Loads the VAE each time it is needed, or once if it may stay, or waits in RAM between its uses."""
    if config[Offload].enable_model_cpu_offload:
        return functools.cache(lambda: family.load_vae("cpu"))
    load = functools.partial(residence.vae, config, family.load_vae, device)
    return functools.cache(load) if config[ModelMemory].keep_vae_loaded else load
