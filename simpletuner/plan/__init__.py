"""Everything that can be known about a run before it starts: no weights are loaded, no torch, nothing is begun.

Every figure comes from the functions that the run itself uses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpletuner import inspection
from simpletuner.adapters.kinds import KINDS
from simpletuner.check import Checked, on_machine
from simpletuner.config import Config
from simpletuner.data.datasets import Datasets
from simpletuner.data.health import Health, examine
from simpletuner.data.library import Library
from simpletuner.data.sampling import batches_per_epoch
from simpletuner.errors import Problem, SimpleTunerError, has_errors
from simpletuner.events import EventLog
from simpletuner.machine import Machine
from simpletuner.models import FamilyRecord, Flavour, access, families
from simpletuner.models.options import Model
from simpletuner.models.places import Place
from simpletuner.models.shapes import Shapes
from simpletuner.optim.options import Optimizer
from simpletuner.plan import disk as disks
from simpletuner.plan import fit as fits
from simpletuner.plan import memory, needs, quantised, rates, resume, work
from simpletuner.plan.caches import Cache, cache_folders, summed
from simpletuner.plan.calendar import Calendar, calendar
from simpletuner.plan.disk import Disk
from simpletuner.plan.fit import Fit, Remedy
from simpletuner.plan.record import plain
from simpletuner.plan.resume import Resume
from simpletuner.plan.time import Time, time
from simpletuner.training import lock
from simpletuner.training.checkpoint import Checkpoints, Contents
from simpletuner.training.options import Saving, Training
from simpletuner.types import Prompt
from simpletuner.validation.options import Validation
from simpletuner.validation.shots import Shot


@dataclass(frozen=True)
class Length:
    """Optimizer steps."""

    steps: int
    per_epoch: float
    batch_size: int
    accumulation: int

    @property
    def epochs(self) -> float:
        return self.steps / self.per_epoch if self.per_epoch else 0.0


@dataclass(frozen=True)
class Base:
    """The model that is trained, and whether it may be had."""

    flavour: Flavour
    name: str  # hub id or folder
    here: bool  # all of it is on this disk
    gated: bool
    access: str  # granted, refused, not checked


@dataclass(frozen=True)
class Details:
    """What is known once the datasets could be read."""

    datasets: tuple[Health, ...]
    dropouts: tuple[float, ...]  # chances that a caption is left out, each once
    num_captions: int  # distinct, over all datasets
    caches: tuple[Cache, ...]
    length: Length
    calendar: Calendar
    shots: int  # images of one validation
    resume: Resume
    fit: Fit
    moved: memory.Moved | None  # blocks that wait in RAM or on disk
    remedies: tuple[Remedy, ...]
    disk: Disk
    time: Time
    base: Base
    weight_bytes: int  # of what is trained
    fit_problems: tuple[Problem, ...]
    disk_problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Plan:
    """A run before it starts. Without details the configuration or the datasets could not be read."""

    config: Config
    details: Details | None
    problems: tuple[Problem, ...]

    @property
    def can_start(self) -> bool:
        return not has_errors(self.problems)

    @property
    def result(self) -> Path:
        return self.config[Training].output_dir / KINDS[self.config[Model].model_type].result

    def record(self) -> dict[str, Any]:
        """Plain data for --json."""
        return plain(self)


def make(checked: Checked, machine: Machine, ask: Callable[[Place], access.Answer] = access.ask) -> Plan:
    """Reads the datasets' headers where they are new, and keeps them in the index; writes nothing else.

    `ask` says whether this login may read a gated model that is not here; by default the hub is asked.
    """
    checked = on_machine(checked, machine)
    config, problems = checked.config, list(checked.problems)
    if checked.failed or checked.datasets is None:
        return Plan(config, None, tuple(problems))
    library, found = inspection.survey(config, checked.datasets)
    problems += found
    log = EventLog(None)
    log.subscribe(lambda event: problems.extend(inspection.warned(event, "disk")))
    try:
        planner = _Planner(config, checked.datasets, library, machine, log, ask)
        details = planner.details()
        problems += [*planner.problems, *details.fit_problems, *details.disk_problems]
    except SimpleTunerError as error:
        details = None
        problems += error.problems
    finally:
        library.close()
    return Plan(config, details, tuple(dict.fromkeys(problems)))


class _Planner:
    """The parts of one plan, each made from those before it."""

    def __init__(
        self,
        config: Config,
        datasets: Datasets,
        library: Library,
        machine: Machine,
        log: EventLog,
        ask: Callable[[Place], access.Answer],
    ):
        self.config, self.datasets, self.library, self.machine, self.ask = config, datasets, library, machine, ask
        self.problems: list[Problem] = []
        self.family: FamilyRecord = families()[config[Model].model_family]
        self.flavour = self.family.flavour(config[Model].model_flavour)
        self.shapes: Shapes = self.family.shapes(config[Model])
        self.on_disk = self.family.on_disk(config[Model])
        self.checkpoints = Checkpoints(
            config[Training].output_dir, config[Saving], log, Contents({}, {}), verified=resume.quickly_verified
        )

    def details(self) -> Details:
        config, library = self.config, self.library
        if held := lock.held(config[Training].output_dir):
            self.problems.append(held)
        prompts = needs.prompts(config, self.datasets, library)
        total = needs.total_steps(config, library)
        going_on = self.resume(total)
        pictures = needs.pictures(config, prompts)
        times = calendar(
            self.checkpoints,
            config[Validation],
            first=going_on.step,
            total=total,
            accumulation=config[Training].gradient_accumulation_steps,
            batches=batches_per_epoch(library.pools()),
        )
        caches = self.caches(prompts)
        fit, remedies = self.fit()
        weights = memory.result_bytes(config, self.family, self.shapes)
        disk = self.disk(caches, times, pictures, weights)
        return Details(
            datasets=tuple(examine(shelf) for shelf in library.shelves),
            dropouts=tuple(sorted({shelf.dataset.entry.caption_dropout_probability for shelf in library.shelves})),
            num_captions=len(library.captions()) - 1,  # without the empty one, which every run has
            caches=caches,
            length=self.length(total),
            calendar=times,
            shots=len(pictures),
            resume=going_on,
            fit=fit,
            moved=memory.moved(config, self.shapes),
            remedies=tuple(remedies),
            disk=disk,
            time=self.time(caches, times, pictures, total - going_on.step),
            base=self.base(),
            weight_bytes=weights,
            fit_problems=tuple(fits.problems(fit, remedies)),
            disk_problems=tuple(disks.problems(disk, config[Training].output_dir)),
        )

    def length(self, total: int) -> Length:
        training = self.config[Training]
        per_epoch = needs.updates_per_epoch(self.config, self.library)
        return Length(total, per_epoch, training.train_batch_size, training.gradient_accumulation_steps)

    def resume(self, total: int) -> Resume:
        try:
            found = resume.look(self.config, self.library, self.checkpoints, total)
        except SimpleTunerError as error:
            self.problems += error.problems
            return Resume(None, 0, False, (), ())
        self.problems += found.differences
        return found

    def caches(self, prompts: list[Prompt]) -> tuple[Cache, ...]:
        texts = needs.texts(self.config, self.library, prompts)
        folders = cache_folders(self.config, self.datasets, self.library, texts, self.on_disk, self.shapes)
        *images, text = folders
        found = summed("text", [text])
        packed = quantised.wanted(self.config, self.on_disk, self.shapes, encoders=found.to_make > 0)
        return found, summed("images", images), *([quantised.summed(packed)] if packed else [])

    def fit(self) -> tuple[Fit, list[Remedy]]:
        buckets = self.library.sizes()
        found = fits.fit(self.config, self.machine, buckets)
        images, alignment = self.datasets.images, self.flavour.alignment
        remedies = [] if found.fits else fits.remedies(self.config, self.machine, buckets, images, alignment)
        return found, remedies

    def disk(self, caches: tuple[Cache, ...], times: Calendar, pictures: list[Shot], weights: int) -> Disk:
        config, kind = self.config, KINDS[self.config[Model].model_type]
        download = self.on_disk.bytes_to_fetch(self.shapes)
        beside = 0 if kind.base_stays else 2 * (self.shapes.encoders + self.shapes.vae)  # the other parts are copied
        return disks.disk(
            config,
            download=download,
            caches=caches,
            checkpoint=disks.checkpoint_bytes(weights, kind.copies, config[Optimizer].optimizer),
            num_checkpoints=disks.at_once(config[Saving], len(times.saves), len(self.checkpoints.steps())),
            images=disks.image_bytes(config[Validation], pictures, len(times.images)),
            result=weights if kind.base_stays else beside,
            offloaded=memory.offloaded(config, self.shapes),
        )

    def time(self, caches: tuple[Cache, ...], times: Calendar, pictures: list[Shot], steps: int) -> Time:
        text, images, *_ = caches
        effort = work.of(self.config, self.shapes, self.library, pictures)
        setting = rates.setting(self.config, self.machine.device_name, work.mean_pixels(self.library))
        return time(
            setting, effort, self.machine.cores,
            steps=max(0, steps), images=len(pictures) * len(times.images), texts=text.to_make, latents=images.to_make,
        )  # fmt: skip

    def base(self) -> Base:
        place, here = self.on_disk.place, not self.on_disk.missing
        gated = access.gated(self.flavour, place)
        answer = self.ask(place) if gated and not here else "not checked"
        if answer == "refused":
            message = f"{place.name} is gated and this machine has no access to it"
            self.problems.append(Problem(message, "auth", fix=place.terms))
        elif not here and answer == "not checked" and gated:
            message = f"{place.name} is gated and not on this disk: whether this machine has access was not checked"
            self.problems.append(Problem(message, "auth", "warning", fix=place.terms))
        return Base(self.flavour, place.name, here, gated, answer)
