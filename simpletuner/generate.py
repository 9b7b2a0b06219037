"""Pictures from a base model and what was trained on it, made as a run makes its validation images.

Like a run, it has one large thing in memory at a time: text encoders, then the transformer, then the VAE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from simpletuner import assembly, check, engine, residence
from simpletuner.adapters.kinds import Kind
from simpletuner.adapters.lora import Lora
from simpletuner.adapters.lora_file import LoraFile
from simpletuner.adapters.weights import Tensors
from simpletuner.config import Config
from simpletuner.data.cache import BadItem, TensorCache
from simpletuner.data.fill import fill_text
from simpletuner.data.keys import item_path, text_key
from simpletuner.data.stores.memory import MemoryStore
from simpletuner.errors import HardwareError, raise_errors
from simpletuner.events import EventLog
from simpletuner.kernels.device import free
from simpletuner.models.options import Model
from simpletuner.protocols import Adapter
from simpletuner.training.checkpoint import Checkpoints, Contents
from simpletuner.training.options import Saving, Speed, Training
from simpletuner.training.precision import Precision, choose_device, prepare
from simpletuner.types import Prompt
from simpletuner.validation import media, prompts, shots, sizes
from simpletuner.validation.options import Validation
from simpletuner.validation.run import weights_hash
from simpletuner.validation.sample import ImageMaker
from simpletuner.validation.shots import Defaults, Shot

if TYPE_CHECKING:
    from PIL.Image import Image

Made = tuple[Path, dict[str, Any]]  # a picture's file, and what it was made with


@dataclass(frozen=True)
class Trained:
    """Where the trained weights come from: a LoRA file, or the exact weights of a run. Neither: the base model."""

    lora: LoraFile | None = None
    weights: Path | None = None  # file or folder
    step: int | None = None  # of a run

    @classmethod
    def of_run(cls, output_dir: Path, kind: Kind, events: EventLog) -> Trained:
        """The newest whole checkpoint, or the result if there is none. DiskError if all of them are damaged."""
        finder = Checkpoints(output_dir, Saving(), events, Contents({}, {}))  # it only looks
        folder = finder.find("latest")
        if folder is None:
            return cls(weights=output_dir / kind.published)
        return cls(weights=folder / kind.state, step=int(folder.name.rpartition("-")[2]))

    def load(self, config: Config, denoiser: nn.Module) -> Adapter | None:
        """The adapter inside the model with its trained weights; None for the base model alone."""
        if self.lora:
            adapter: Any = Lora.of_file(self.lora)
            adapter.attach(denoiser)
            adapter.load_state(self.lora.state())
        elif self.weights:
            adapter = assembly.attach_adapter(config, denoiser)
            adapter.load_state(Tensors(self.weights))
        else:
            return None
        return adapter


def generate(
    config: Config, wanted: Sequence[Prompt], trained: Trained, *, count: int, out: Path, events: EventLog
) -> list[Made]:
    """`count` pictures of each prompt in new files of the folder `out`, in the order of the prompts.

    ConfigError for a LoRA of another model, before anything large is loaded. HardwareError if a picture is missing.
    """
    prepare(config[Speed], config[Training].deterministic)
    device = choose_device()
    assembly.probe(config, device)
    precision = Precision(config[Speed].mixed_precision, device)
    family = assembly.load_family(config, precision)
    if trained.lora:
        trained.lora.check(family.layers(), config[Model].model_flavour)
    planned = _planned(config, wanted, count)
    texts = _encoded(config, family, wanted, device, events)
    events.stage("init_load_base_model", "transformer", "started")
    denoiser = family.load_denoiser(device, residence.home(config, device))
    adapter = trained.load(config, denoiser)
    sampling = engine.for_pictures(config, family, denoiser, adapter, precision, events)
    events.stage("init_load_base_model", "transformer", "done")
    for notice in family.notices:
        events.emit("log", notice.severity, message=notice.message, fix=notice.fix)
    keep, made = _keeper(config, family, trained, adapter, out)
    maker = ImageMaker(
        sampler=family.sampler(denoiser, sampling),
        load_vae=assembly.vae_loader(config, family, device),
        free=free,
        embed=assembly.embedding(texts),
        latent_shape=assembly.latent_shape(family),
        events=events,
        stopping=lambda: False,
    )
    events.stage("generate", "pictures", "started", current=0, total=len(planned))
    maker.make(
        planned,
        lambda shot: _at_strength(adapter, shot.strength),
        keep,
        lambda done, total: events.stage("generate", "pictures", "progress", current=done, total=total),
    )
    events.stage("generate", "pictures", "done", current=len(made), total=len(planned))
    if missing := len(planned) - len(made):
        message = f"{missing} of {len(planned)} pictures could not be made; the warnings above say why"
        raise HardwareError(message, fix="if memory was short, ask for a smaller --size")
    return made


def _planned(config: Config, wanted: Sequence[Prompt], count: int) -> list[Shot]:
    """The pictures as a validation would plan them, from its own noise numbers."""
    options = config[Validation].model_copy(update={"num_validation_images": count, "validation_randomize": False})
    resolution, problems = sizes.parse(options.validation_resolution)
    raise_errors(problems)
    return shots.plan(wanted, resolution, options, Defaults.of(options), seed=config[Training].seed, step=0)


def _encoded(
    config: Config, family: Any, wanted: Sequence[Prompt], device: torch.device, events: EventLog
) -> TensorCache:
    """The embeddings of all texts, in memory. What the run has cached is taken from there; nothing is written."""
    options = config[Validation]
    real = Defaults.of(options).guidance_real
    needed = prompts.texts(wanted, options.validation_negative_prompt, real)
    texts = TensorCache(MemoryStore(), family.text_fingerprint(), "text")
    datasets, _ = check.read_datasets(config)  # may have gone since; then all texts are encoded
    if datasets:
        cached = TensorCache.at(datasets.text.cache, texts.encoder, "text")
        for key in {text_key(text, texts.encoder) for text in needed}:
            if cached.store.exists(item_path(key)):
                try:
                    texts.write(key, cached.read(key))
                except BadItem:
                    continue
    fill_text(
        texts,
        needed,
        assembly.text_encoders(config, family, device),
        batch_size=1,  # as a run does unless told otherwise
        events=events,
        dataset="",
    )
    return texts


def _keeper(
    config: Config, family: Any, trained: Trained, adapter: Adapter | None, out: Path
) -> tuple[Callable[[Shot, Image], None], list[Made]]:
    """(what writes a picture, the growing list of those written)."""
    facts = {**assembly.facts(config), "base": assembly.base_id(family)}
    name = weights_hash(adapter.parameters()) if adapter else None
    step = {} if trained.step is None else {"step": trained.step}
    made: list[Made] = []

    def keep(shot: Shot, image: Image) -> None:
        settings = shot.settings(facts, name if shot.strength else None) | {"size": str(shot.size)} | step
        made.append((media.save_new(image, out, shot.prompt.nickname, settings), settings))

    return keep, made


def _at_strength(adapter: Adapter | None, strength: float) -> AbstractContextManager[None]:
    """The model with the adapter at that strength; at 0 the base model itself, with nothing added to anything."""
    if adapter is None:
        return nullcontext()
    return adapter.scaled(strength) if strength else adapter.disabled()
