"""What a run keeps: the contents of its checkpoints, the description inside its file, and the published result."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

import simpletuner
from simpletuner import check, plan
from simpletuner.adapters import metadata
from simpletuner.adapters.lora import Lora
from simpletuner.adapters.options import Adapter
from simpletuner.data.library import Library
from simpletuner.data.options import Data
from simpletuner.optim.options import Optimizer
from simpletuner.training.checkpoint import Contents, verify
from simpletuner.training.options import Speed
from simpletuner.training.state import load_optimizer, save_optimizer

if TYPE_CHECKING:
    from simpletuner.recipe import Run

RESULT = "pytorch_lora_weights.safetensors"


def contents(run: Run, library: Library, adapter: Lora, optimizer: torch.optim.Optimizer) -> Contents:
    """Every file of a checkpoint with who writes it and who reads it back (outputs.md section 5.2)."""
    names = list(adapter.parameters())
    datasets = library.describe()

    def export(path: Path) -> None:
        adapter.export(path.parent, described(run, library))

    def restore_optimizer(path: Path) -> None:
        if not load_optimizer(optimizer, names, path.parent):
            run.events.warn("optimizer_changed", "another kind of optimizer: it starts with empty state")

    return Contents(
        writers={
            "state/adapter.safetensors": lambda path: save_file(adapter.state(), path),
            "state/optimizer.json": lambda path: save_optimizer(optimizer, names, path.parent),
            RESULT: export,
            "config.resolved.json": run.config.write,
            "datasets.json": lambda path: _write_json(path, datasets),
        },
        readers={
            "state/adapter.safetensors": lambda path: adapter.load_state(load_file(path)),
            "state/optimizer.json": restore_optimizer,
        },
        facts=_manifest_facts(run, adapter, datasets),
        result=RESULT,
        check=adapter.check,
        estimated_bytes=plan.checkpoint_bytes(adapter.parameters()),
    )


def _manifest_facts(run: Run, adapter: Lora, datasets: list[dict[str, Any]]) -> dict[str, Any]:
    options = adapter.options
    return {
        "model_family": run.record.name,
        "model_flavour": run.flavour.name,
        "model_type": "lora",
        "world_size": 1,
        "base": {"id": base_name(run), "hash": run.family.denoiser_fingerprint()},
        "adapter": {
            "kind": adapter.kind,
            "rank": options.lora_rank,
            "alpha": options.alpha,
            "targets": options.flux_lora_target,
        },
        "config_hash": config_hash(run),
        "dataset_fingerprint": hashlib.sha256(json.dumps([d["fingerprint"] for d in datasets]).encode()).hexdigest(),
        "versions": {"simpletuner": simpletuner.__version__, "torch": torch.__version__},
    }


def base_name(run: Run) -> str:
    """The base model as others know it: the flavour's name for bundled weights, else a hub id or a folder's name."""
    name = run.family.weights.main.name
    bundled = name == run.flavour.repository and Path(name).is_absolute()
    return run.flavour.name if bundled else metadata.public_name(name)


def config_hash(run: Run) -> str:
    return hashlib.sha256(json.dumps(run.config.values(), sort_keys=True).encode()).hexdigest()


def described(run: Run, library: Library) -> dict[str, str]:
    """The metadata of the exported file; what `lora_metadata` holds back is the adapter's matter."""
    adapter, settings, shelves = run.config[Adapter], run.config[Optimizer], library.shelves
    tags = {shelf.id: Counter(c for item in shelf.items for c in item.sample.captions) for shelf in shelves}
    facts = {
        "rank": adapter.lora_rank,
        "alpha": adapter.alpha,
        "base_name": base_name(run),
        "output_name": run.output_dir.name,
        "resolution": f"{run.config[Data].resolution:g}",
        "step": run.progress.step,
        "epoch": run.progress.epoch,
        "num_images": sum(len(shelf.items) for shelf in shelves),
        "learning_rate": settings.learning_rate,
        "optimizer": settings.optimizer,
        "lr_scheduler": settings.lr_scheduler,
        "seed": run.seed,
        "mixed_precision": run.config[Speed].mixed_precision,
        "flavour": run.flavour.name,
        "shift": run.objective.flow_schedule_shift,
        "tags": tags,
        "architecture": run.flavour.architecture,
        "licence": run.flavour.licence,
        "comment": adapter.modelspec_comment,
        "trigger": check.instance_prompt(run.config, run.datasets),
        "version": simpletuner.__version__,
        "base_precision": str(run.family.base_dtype).removeprefix("torch."),
        "config_hash": config_hash(run),
    }
    return metadata.describe(facts | run.family.export_facts())


def publish(run: Run, checkpoint: Path) -> Path:
    """Copies the last checkpoint's result to its final place, whole or not at all."""
    result, partial = run.output_dir / RESULT, run.output_dir / f".{RESULT}.tmp-{os.getpid()}"
    problems = verify(checkpoint)
    assert not problems, problems
    shutil.copyfile(checkpoint / RESULT, partial)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, result)
    format = run.config[Adapter].lora_format
    run.events.emit("export.done", path=result.name, format=format, checks=["keys", "values", "scale"])
    return result


def published(run: Run, checkpoint: Path) -> Path | None:
    """The result in its final place if it is that of `checkpoint`."""
    result = run.output_dir / RESULT
    same = result.is_file() and result.read_bytes() == (checkpoint / RESULT).read_bytes()
    return result if same else None


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), "utf-8")
