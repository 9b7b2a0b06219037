"""What can be said about a run before its first step: lengths, sizes, and the first screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simpletuner import __version__
from simpletuner.adapters.options import Adapter
from simpletuner.config import Config
from simpletuner.data.library import Library
from simpletuner.data.options import Data
from simpletuner.data.sampling import batches_per_epoch
from simpletuner.diffusion.options import Objective
from simpletuner.memory.options import Memory
from simpletuner.models import Flavour
from simpletuner.models.options import Model
from simpletuner.optim.options import Optimizer
from simpletuner.protocols import Adapter as Trained
from simpletuner.training.options import Saving, Speed, Training
from simpletuner.validation.options import Validation

if TYPE_CHECKING:
    import torch

MOMENTS = 2  # that an optimizer keeps of each weight, in the weight's precision; a few keep one more or less


def checkpoint_bytes(parameters: Mapping[str, Any], copies: int) -> int:
    """An estimate: the weights, twice unless the export is the exact state as well, and the optimizer's state."""
    return sum(p.numel() * p.element_size() * (copies + MOMENTS) for p in parameters.values())


def relief(config: Config) -> list[str]:
    """Lines that would make a run fit into memory and do not hold yet; what costs no quality comes first."""
    memory, data, batch = config[Memory], config[Data], config[Training].train_batch_size
    rank = config[Adapter].lora_rank
    wide = memory.base_dtype(config[Speed].mixed_precision) == "fp32"
    smaller_optimizer = config[Speed].mixed_precision == "bf16" and config[Optimizer].optimizer != "adamw_bf16"
    lines = {
        "gradient_checkpointing=true": not memory.gradient_checkpointing,
        "gradient_checkpointing_interval=1": memory.gradient_checkpointing_interval > 1,
        f"train_batch_size=1, gradient_accumulation_steps={batch}": batch > 1,
        "optimizer=adamw_bf16": smaller_optimizer and not wide,
        "optimizer=adamw_bf16, base_model_precision=bf16, in a new output_dir": smaller_optimizer and wide,
        f"lora_rank={rank // 2}, in a new output_dir": rank > 1 and config.applies("lora_rank"),
        f"resolution={data.resolution / 2:g}, in a new output_dir": data.resolution_type != "area",
    }
    return [line for line, helps in lines.items() if helps]


def first_screen(
    config: Config, flavour: Flavour, library: Library, adapter: Trained, total_steps: int,
    resumed: Path | None, device: torch.device,
) -> str:  # fmt: skip
    """At most 24 lines of 80 columns: what will be trained, on what, how long, and what is kept."""
    training, optimizer, parameters = config[Training], config[Optimizer], adapter.parameters()
    numel = sum(p.numel() for p in parameters.values())
    saving, kept = config[Saving], config[Saving].checkpoints_total_limit or "all"
    megabytes = sum(p.numel() * p.element_size() for p in parameters.values()) / 1e6
    base = config[Memory].base_dtype(config[Speed].mixed_precision)
    per_epoch = batches_per_epoch(library.pools())
    updates = per_epoch / training.gradient_accumulation_steps
    batch = f"{training.train_batch_size} x {training.gradient_accumulation_steps}"
    rows = [
        (
            "model",
            f"{config[Model].model_family} {flavour.name}, {adapter.summary()} "
            f"({numel / 1e6:.2f} M, {megabytes:.1f} MB), base {base}",
        ),
        ("licence", f"{flavour.licence}: the result inherits it"),
        *_data_rows(library),
        ("", f"{per_epoch} batches = {updates:g} steps per epoch"),
        ("length", f"{total_steps} steps = {total_steps / updates:.2f} epochs, batch {batch}, seed {training.seed}"),
        (
            "rate",
            f"{optimizer.learning_rate:g} {optimizer.lr_scheduler} ({optimizer.lr_warmup_steps}), "
            f"{optimizer.optimizer}, clip {optimizer.max_grad_norm:g} ({optimizer.grad_clip_method}), "
            f"{_shift(config[Objective])}",
        ),
        ("resume", f"{resumed.name}" if resumed else f"nothing to resume in {training.output_dir.name}"),
        ("device", _device(device)),
        ("saves", f"every {saving.checkpoint_step_interval} steps, keeps {kept}{_images(config)}"),
        ("output", str(training.output_dir)),
    ]
    head = f"SimpleTuner {__version__}   {training.output_dir.name}   {config.path or 'command line'}"
    return "\n".join([head, *(f"{name:<8} {text}".rstrip() for name, text in rows), "Stop with Ctrl-C (saves first)."])


def _data_rows(library: Library) -> list[tuple[str, str]]:
    rows = []
    for index, shelf in enumerate(library.shelves):
        excluded = sum(shelf.scan.reasons().values())
        used, files = len(shelf.items), len(shelf.items) + excluded
        buckets = ", ".join(f"{bucket} ({len(items)})" for bucket, items in list(shelf.buckets().items())[:3])
        rows.append(
            (
                "data" if index == 0 else "",
                f"{shelf.id}: {used} of {files} image{'s' * (files != 1)} x {1 + shelf.repeats}   {buckets}",
            )
        )
    return rows


def _shift(objective: Objective) -> str:
    if objective.flow_schedule_shift is not None:
        return f"shift {objective.flow_schedule_shift:g}"
    return "no shift" if objective.flow_schedule_auto_shift is False else "auto-shift"


def _device(device: torch.device) -> str:
    import torch

    if device.type != "cuda":
        return f"{device.type}, {torch.get_num_threads()} threads"
    facts = torch.cuda.get_device_properties(device)
    return f"GPU {device.index or 0}   {facts.name} {facts.total_memory / 2**30:.1f} GiB"


def _images(config: Config) -> str:
    validation: Validation = config[Validation]
    if validation.validation_disable:
        return "; no images"
    return f"; images every {validation.validation_step_interval} steps, {validation.validation_resolution}"
