"""What a run keeps: the contents of its checkpoints, the description inside its files, and the published result."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

import simpletuner
from simpletuner import check, publishing
from simpletuner.adapters import metadata, options
from simpletuner.adapters.weights import Tensors
from simpletuner.data.library import Library
from simpletuner.data.options import Data
from simpletuner.errors import DiskError
from simpletuner.optim.options import Optimizer
from simpletuner.plan.disk import checkpoint_bytes
from simpletuner.protocols import Adapter
from simpletuner.training.checkpoint import Contents
from simpletuner.training.manifest import verify
from simpletuner.training.options import Speed
from simpletuner.training.state import load_optimizer, save_optimizer

if TYPE_CHECKING:
    from simpletuner.recipe import Run


def contents(run: Run, library: Library, adapter: Adapter, optimizer: torch.optim.Optimizer) -> Contents:
    """Every file of a checkpoint with who writes it and who reads it back (outputs.md section 5.2)."""
    names, kind = list(adapter.parameters()), run.kind
    datasets = library.describe()

    def export(path: Path) -> None:
        adapter.export(path.parent, described(run, library, adapter))

    def restore_optimizer(path: Path) -> None:
        if not load_optimizer(optimizer, names, path.parent):
            run.events.warn("optimizer_changed", "another kind of optimizer: it starts with empty state")

    return Contents(
        writers={
            kind.state: lambda path: save_file(adapter.state(), path),
            kind.export: export,  # in place of the line above where it is the exact state as well
            "state/optimizer.json": lambda path: save_optimizer(optimizer, names, path.parent),
            "config.resolved.json": run.config.write,
            "datasets.json": lambda path: _write_json(path, datasets),
        },
        readers={
            kind.state: lambda path: adapter.load_state(Tensors(path)),
            "state/optimizer.json": restore_optimizer,
        },
        facts=_manifest_facts(run, adapter, datasets),
        result=kind.export,
        check=adapter.check,
        estimated_bytes=checkpoint_bytes(
            sum(p.numel() * p.element_size() for p in adapter.parameters().values()),
            copies=kind.copies,
            optimizer=run.config[Optimizer].optimizer,
        ),
    )


def _manifest_facts(run: Run, adapter: Adapter, datasets: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model_family": run.record.name,
        "model_flavour": run.flavour.name,
        "model_type": run.kind.name,
        "world_size": 1,
        "base": {"id": base_name(run), "hash": run.family.denoiser_fingerprint()},
        "adapter": {"kind": adapter.kind, **adapter.facts()},
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


def described(run: Run, library: Library, adapter: Adapter) -> dict[str, str]:
    """The metadata of the exported file; what `lora_metadata` holds back is the adapter's matter."""
    settings, shelves = run.config[Optimizer], library.shelves
    tags = {shelf.id: Counter(c for item in shelf.items for c in item.sample.captions) for shelf in shelves}
    facts = {
        **adapter.facts(),
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
        "comment": run.config[options.Adapter].modelspec_comment,
        "trigger": check.instance_prompt(run.config, run.datasets),
        "version": simpletuner.__version__,
        "base_precision": run.family.kind("transformer") or str(run.family.base_dtype).removeprefix("torch."),
        "config_hash": config_hash(run),
    }
    return metadata.describe(facts | run.family.export_facts())


def publish(run: Run, adapter: Adapter, checkpoint: Path) -> Path:
    """Puts what the last checkpoint holds for other tools in its final place, whole or not at all."""
    problems = verify(checkpoint)
    assert not problems, problems
    result = run.output_dir / run.kind.result
    try:
        moved = _place(run, checkpoint / run.kind.export, result)
    except OSError as error:
        fix = f"free some space or repair the disk, then start again: {checkpoint.name} is whole"
        raise DiskError(f"{result}: {error.strerror or error}", fix=fix) from error
    if moved:
        run.events.warn("earlier_result", f"the {result.name} that was here is now in {moved.name}")
    run.events.emit("export.done", path=result.name, format=adapter.format, checks=list(adapter.checks))
    return result


def _place(run: Run, export: Path, result: Path) -> Path | None:
    """Where the result that was there before went, if it was moved."""
    if run.kind.base_stays:
        publishing.file(export, result)
        return None
    own = {f"{export.name}/{path.name}": path for path in export.iterdir()}
    return publishing.folder(result, own, run.family.pipeline_files())


def published(run: Run, checkpoint: Path) -> Path | None:
    """The result in its final place if it is that of `checkpoint`."""
    same = publishing.equal(checkpoint / run.kind.export, run.output_dir / run.kind.published)
    return run.output_dir / run.kind.result if same else None


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), "utf-8")
