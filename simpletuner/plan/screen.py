"""The first screen of a run: what will be trained, on what, how long, and what is kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from simpletuner import __version__, machine
from simpletuner.config import Config
from simpletuner.data.library import Library
from simpletuner.data.sampling import batches_per_epoch
from simpletuner.diffusion.options import Objective
from simpletuner.memory.options import Memory
from simpletuner.models import Flavour
from simpletuner.models.options import Model
from simpletuner.optim.options import Optimizer
from simpletuner.plan import needs, words
from simpletuner.plan.fit import GIB, fit
from simpletuner.plan.table import wrapped
from simpletuner.protocols import Adapter as Trained
from simpletuner.training.options import Saving, Speed, Training
from simpletuner.validation.options import Validation

if TYPE_CHECKING:
    import torch

WIDTH, HEIGHT = 80, 24


def first_screen(
    config: Config, flavour: Flavour, library: Library, adapter: Trained, total_steps: int,
    resumed: Path | None, device: torch.device,
) -> str:  # fmt: skip
    """At most 24 lines of 80 columns: what will be trained, on what, how long, and what is kept."""
    training, saving = config[Training], config[Saving]
    kept = saving.checkpoints_total_limit or "all"
    head = f"SimpleTuner {__version__}   {training.output_dir.name}   {words.shown_path(config.path or 'command line')}"
    before = [("model", _model(config, flavour, adapter)), ("licence", f"{flavour.licence}: the result inherits it")]
    after = [
        ("", _epoch(config, library)),
        ("length", _length(config, library, total_steps)),
        ("rate", _rate(config)),
        ("resume", f"{resumed.name}" if resumed else f"nothing to resume in {training.output_dir.name}"),
        ("device", _device(config, library, device)),
        ("saves", f"every {saving.checkpoint_step_interval} steps, keeps {kept}{_images(config)}"),
        ("reports", words.remote(config)),
        ("output", words.shown_path(training.output_dir)),
    ]
    top, bottom = [*wrapped(head, WIDTH), *_lines(before)], [*_lines(after), "Stop with Ctrl-C (saves first)."]
    return "\n".join([*top, *_data_lines(library, HEIGHT - len(top) - len(bottom)), *bottom])


def _lines(rows: Iterable[tuple[str, str]]) -> list[str]:
    return [line for name, text in rows for line in wrapped(text, WIDTH, f"{name:<8} ", " " * 9)]


def _model(config: Config, flavour: Flavour, adapter: Trained) -> str:
    parameters = adapter.parameters().values()
    numel = sum(p.numel() for p in parameters)
    megabytes = sum(p.numel() * p.element_size() for p in parameters) / 1e6
    base = config[Memory].storage(config[Speed].mixed_precision)
    size = f"({numel / 1e6:.2f} M, {megabytes:.1f} MB)"
    return f"{config[Model].model_family} {flavour.name}, {adapter.summary()} {size}, base {base}"


def _data_lines(library: Library, most: int) -> list[str]:
    """A line for each dataset, as many as there is room for."""
    rows: list[str] = []
    for shelf in library.shelves:
        found = len(shelf.items) + len(shelf.scan.left_out)
        buckets = ", ".join(f"{bucket} ({len(items)})" for bucket, items in list(shelf.buckets().items())[:3])
        images = f"{len(shelf.items)} of {found} image{'s' * (found != 1)} x {1 + shelf.repeats}"
        line = f"{'' if rows else 'data':<8} {shelf.id}: {images}   {buckets}"
        rows.append(line if len(line) <= WIDTH else line[: WIDTH - 1] + "…")
    if len(rows) <= most:
        return rows
    return [*rows[: most - 1], f"{'':<8} and {len(rows) - most + 1} more datasets"]


def _epoch(config: Config, library: Library) -> str:
    batches, left_out = batches_per_epoch(library.pools()), sum(len(shelf.scan.left_out) for shelf in library.shelves)
    excluded = f", {left_out} image{'s' * (left_out != 1)} left out (dataset report)" if left_out else ""
    return f"{batches} batches = {needs.updates_per_epoch(config, library):g} steps per epoch{excluded}"


def _length(config: Config, library: Library, total_steps: int) -> str:
    training, epochs = config[Training], total_steps / needs.updates_per_epoch(config, library)
    batch = f"{training.train_batch_size} x {training.gradient_accumulation_steps}"
    return f"{total_steps} steps = {epochs:.2f} epochs, batch {batch}, seed {training.seed}"


def _rate(config: Config) -> str:
    settings = config[Optimizer]
    clip = f"clip {settings.clip_limit:g} ({settings.grad_clip_method})" if settings.clip_limit else "no clip"
    rate = f"{settings.learning_rate:g} {settings.lr_scheduler} ({settings.lr_warmup_steps})"
    return f"{rate}, {settings.optimizer}, {clip}, {_shift(config[Objective])}"


def _shift(objective: Objective) -> str:
    if objective.flow_schedule_shift is not None:
        return f"shift {objective.flow_schedule_shift:g}"
    return "no shift" if objective.flow_schedule_auto_shift is False else "auto-shift"


def _device(config: Config, library: Library, device: torch.device) -> str:
    import torch

    here = machine.look()
    here = here if device.type != "cpu" else replace(here, gpus=(), other_gpu="")
    need = fit(config, here, library.sizes())
    ram = f"RAM estimate {need.ram_needed / GIB:.1f} GiB"
    if device.type != "cuda":
        return f"{device.type}, {torch.get_num_threads()} threads, {ram}"
    facts = torch.cuda.get_device_properties(device)
    size = f"{facts.total_memory / GIB:.1f} GiB, estimate {need.vram.vram_bytes / GIB:.1f} GiB"
    return f"GPU {device.index or 0} {facts.name} {size}; {ram}"


def _images(config: Config) -> str:
    validation: Validation = config[Validation]
    if validation.validation_disable:
        return "; no images"
    return f"; images every {validation.validation_step_interval} steps, {validation.validation_resolution}"
