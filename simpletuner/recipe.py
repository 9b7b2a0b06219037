"""A run, in the order in which things happen: the only place where the parts meet.

    python -m simpletuner.recipe --config <output_dir>/config.resolved.json

One large thing is in memory at a time: text encoders, then the VAE, then the transformer.
"""

from __future__ import annotations

if __name__ == "__main__":  # first of all, so that mistakes and signals are met before torch has loaded
    from simpletuner.process import main

    main()

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simpletuner import assembly, engine, keeping, machine, residence
from simpletuner.adapters.kinds import KINDS
from simpletuner.config import Config
from simpletuner.data.cache import TensorCache
from simpletuner.data.datasets import Datasets
from simpletuner.data.fill import Latents, fill_latents, fill_text
from simpletuner.data.library import Library, open_library
from simpletuner.data.loader import Loader
from simpletuner.data.options import Data
from simpletuner.diffusion import options as objective_options
from simpletuner.diffusion.options import Objective
from simpletuner.diffusion.times import Times
from simpletuner.errors import Problem, raise_errors
from simpletuner.events import EventLog
from simpletuner.kernels.device import free
from simpletuner.memory.options import Memory
from simpletuner.models import families
from simpletuner.models.options import Model
from simpletuner.optim import build as optimizers
from simpletuner.optim import schedules
from simpletuner.optim.options import Optimizer
from simpletuner.plan import needs, rates, relief, resume, screen, work
from simpletuner.protocols import Adapter
from simpletuner.tracking.metrics import MetricsFile
from simpletuner.training.checkpoint import Checkpoints, Contents
from simpletuner.training.control import Control
from simpletuner.training.options import Saving, Speed, Training
from simpletuner.training.precision import Precision, choose_device, prepare
from simpletuner.training.signals import StopRequest
from simpletuner.training.trainer import Trainer
from simpletuner.types import Progress, Prompt
from simpletuner.validation.options import Validation
from simpletuner.validation.run import ValidationRun
from simpletuner.validation.shots import Defaults


@dataclass
class Run:
    """What the phases of one run hand to each other."""

    config: Config
    datasets: Datasets
    prompts: list[Prompt]
    events: EventLog
    stop: StopRequest
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.output_dir = self.config[Training].output_dir
        self.record = families()[self.config[Model].model_family]
        self.flavour = self.record.flavour(self.config[Model].model_flavour)
        self.kind = KINDS[self.config[Model].model_type]
        self.objective, _ = objective_options.settle(self.config[Objective], self.config.given)  # the rules have told
        self.seed = self.config[Training].seed
        prepare(self.config[Speed], self.config[Training].deterministic)
        self.device = choose_device()
        self.precision = Precision(self.config[Speed].mixed_precision, self.device)
        self.family: Any = None
        self.drift: list[Problem] = []  # what changed since the checkpoint that the run goes on from

    # ---- the phases

    def train(self) -> Path:
        """The whole run; returns its result, a file or a folder. Raises Stopped once all is saved, if asked to stop."""
        self.family = self.load_family()
        library = self.scan()
        resumed = self.find_checkpoint(library)
        if done := self.finished(library, resumed):
            return done
        texts = self.encode_texts(library)
        latents = self.encode_images(library)
        loader = Loader(library, latents, texts, options=self.config[Data], seed=self.seed, progress=self.progress)
        try:
            return self.train_on(library, loader, texts, resumed)
        finally:
            loader.close()
            library.close()

    def train_on(self, library: Library, loader: Loader, texts: TensorCache, resumed: Path | None) -> Path:
        self.events.stage("init_load_base_model", "transformer", "started")
        denoiser = self.family.load_denoiser(self.device, residence.home(self.config, self.device))
        self.tell(self.family.notices)
        self.events.stage("init_load_base_model", "transformer", "done")
        adapter = self.attach_adapter(denoiser)
        shapes = len(library.sizes())
        run = engine.build(self.config, self.family, denoiser, adapter, self.precision, self.events, shapes)
        settings = self.config[Optimizer]
        samples_per_step = self.config[Training].train_batch_size * self.config[Training].gradient_accumulation_steps
        parameters = adapter.parameters()
        optimizer = optimizers.build(
            settings.model_copy(update={"learning_rate": schedules.peak(settings, samples_per_step)}),
            parameters,
            self.seed,
        )
        total_steps = self.total_steps(library)
        contents = keeping.contents(self, library, adapter, optimizer)
        checkpoints = Checkpoints(
            self.output_dir,
            self.config[Saving],
            self.events,
            contents,
            wait_ended=lambda: self.stop.requested,
            room=residence.during_save(self.config, denoiser, run.functional),
        )
        stage = residence.decoding(self.config, denoiser, run.functional, self.device)
        validation = self.validation(denoiser, adapter, texts, stage, run.sampling)
        trainer = self.trainer(denoiser, adapter, optimizer, loader, checkpoints, validation, total_steps, run.pace)
        if resumed:
            trainer.load_state(checkpoints.restore(resumed))
            changes = [problem.message for problem in self.drift]
            self.events.emit("run.resumed", **{"from": resumed.name}, step=self.progress.step, drift=changes)
            self.tell(self.drift)
        self.show_first_screen(library, adapter, total_steps, resumed)
        self.events.emit("log", "info", message=run.line)
        with self.stop:  # from here on a signal lets the step end, and saves
            if validation:
                validation.start(self.progress.step)
            trainer.train()
        self.remember_rates(library)
        return keeping.publish(self, adapter, self.output_dir / f"checkpoint-{self.progress.step}")

    def load_family(self) -> Any:
        """Finds all parts of the model; downloads nothing large and loads nothing yet."""
        assembly.probe(self.config, self.device)
        family = assembly.load_family(self.config, self.precision, suspicious=self.events.unclean)
        if not self.kind.base_stays:
            family.pipeline_files()  # of the result: whatever is missing shows now, and not at the end
        return family

    def scan(self) -> Library:
        """Headers of all images; then the prompts are complete, since the first caption is known."""
        self.events.stage("init_data_backend", "scan", "started")
        training = self.config[Training]
        library = open_library(
            self.datasets,
            self.config[Data],
            batch_size=training.train_batch_size,
            accumulation=training.gradient_accumulation_steps,
            ranks=1,
            events=self.events,
        )
        self.prompts = needs.prompts(self.config, self.datasets, library)
        self.events.stage("init_data_backend", "scan", "done")
        return library

    def encode_texts(self, library: Library) -> TensorCache:
        """Every caption and validation prompt, and the empty one; the encoders are loaded only if one is missing."""
        cache = TensorCache.at(self.datasets.text.cache, self.family.text_fingerprint(), "text")
        fill_text(
            cache,
            needs.texts(self.config, library, self.prompts),
            assembly.text_encoders(self.config, self.family, self.device),
            batch_size=self.datasets.text.entry.text_encoder_batch_size,
            events=self.events,
        )
        if self.family.num_cut:
            self.events.warn(
                "caption_cut",
                f"{self.family.num_cut} captions are longer than {self.family.text_length} tokens and were cut",
                f"the longest begins: {self.family.longest_cut[:60]!r}",
            )
        return cache

    def encode_images(self, library: Library) -> dict[str, Latents]:
        images = assembly.images(self.config, self.family, self.device)
        return fill_latents(library, images, events=self.events)

    def attach_adapter(self, denoiser: nn.Module) -> Adapter:
        return assembly.attach_adapter(self.config, denoiser)

    def remember_rates(self, library: Library) -> None:
        """How fast this was: later plans on this machine tell times by it."""
        device = "CPU" if self.device.type == "cpu" else machine.look().device_name
        pictures = needs.pictures(self.config, self.prompts)
        effort = work.of(self.config, self.record.shapes(self.config[Model]), library, pictures)
        setting = rates.setting(self.config, device, work.mean_pixels(library))
        rates.learn(setting, effort, self.output_dir, self.events.attempt)

    # ---- resume and results

    def find_checkpoint(self, library: Library) -> Path | None:
        """The checkpoint to go on from, after its configuration was compared with the present one."""
        finder = Checkpoints(self.output_dir, self.config[Saving], self.events, Contents({}, {}))
        finder.prepare()
        folder = finder.find(self.config[Training].resume_from_checkpoint)
        if folder is None:
            return None
        self.drift = resume.differences(self.config, library, folder)
        raise_errors(self.drift)
        finder.branch_at(folder)
        return folder

    def finished(self, library: Library, resumed: Path | None) -> Path | None:
        """The result of a run that is complete already; None if there is something left to do."""
        if resumed is None or (result := keeping.published(self, resumed)) is None:
            return None
        step = resume.step_of(resumed)
        if step < self.total_steps(library):
            return None
        self.progress.step = step
        message = f"this run is complete at step {step}"
        self.events.warn("complete", message, "raise max_train_steps, or use another output_dir")
        return result

    def total_steps(self, library: Library) -> int:
        return needs.total_steps(self.config, library)

    # ---- training and watching

    def trainer(
        self,
        denoiser: nn.Module,
        adapter: Adapter,
        optimizer: torch.optim.Optimizer,
        loader: Loader,
        checkpoints: Checkpoints,
        validation: ValidationRun | None,
        total_steps: int,
        pace: Any,
    ) -> Trainer:
        settings = self.config[Optimizer]
        times = Times(self.objective, self.family.shift_curve())
        swap = 0 if self.device.type == "cpu" else None  # there is nowhere to move blocks to
        return Trainer(
            family=self.family,
            denoiser=denoiser,
            trainable=adapter.parameters(),
            optimizer=optimizer,
            schedule=lambda step: schedules.factor(settings, step, total_steps),
            times=times,
            loader=loader,
            checkpoints=checkpoints,
            validation=validation,
            events=self.events,
            metrics=MetricsFile(self.output_dir, self.events.run, self.events.attempt),
            progress=self.progress,
            options=self.config[Training],
            precision=self.precision,
            stop=self.stop,
            seed=self.seed,
            total_steps=total_steps,
            total_epochs=self.config[Training].num_train_epochs,
            max_grad_norm=settings.clip_limit,
            grad_clip_method=settings.grad_clip_method,
            gradient_precision=settings.gradient_precision,
            cache_clear_interval=self.config[Memory].accelerator_cache_clear_interval,
            control=Control(self.output_dir, self.events),
            relief=[str(change) for change in relief.changes(self.config, self.datasets.images, swap=swap)],
            parent=adapter.disabled,
            pace=pace,
        )

    def validation(
        self,
        denoiser: nn.Module,
        adapter: Adapter,
        texts: TensorCache,
        stage: Callable[[nn.Module], Any],
        sampling: engine.Stay,
    ) -> ValidationRun | None:
        options, family = self.config[Validation], self.family
        if options.validation_disable:
            return None
        return ValidationRun(
            options=options,
            prompts=self.prompts,
            sampler=family.sampler(denoiser, sampling),
            load_vae=assembly.vae_loader(self.config, family, self.device),
            free=free,
            embed=assembly.embedding(texts),
            adapter=adapter,
            latent_shape=assembly.latent_shape(family),
            output_dir=self.output_dir,
            events=self.events,
            seed=self.seed,
            defaults=Defaults.of(options),
            base_id=assembly.base_id(family),
            facts=assembly.facts(self.config),
            stopping=lambda: self.stop.requested,
            base_stays=self.kind.base_stays,
            stage=stage,
        )

    def tell(self, problems: list[Problem]) -> None:
        for problem in problems:
            self.events.emit("log", problem.severity, message=problem.message, fix=problem.fix)

    def show_first_screen(self, library: Library, adapter: Adapter, total_steps: int, resumed: Path | None) -> None:
        text = screen.first_screen(self.config, self.flavour, library, adapter, total_steps, resumed, self.device)
        self.events.emit("log", "info", message=text)
