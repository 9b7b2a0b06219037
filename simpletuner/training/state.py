"""Optimizer state on disk without pickle: tensors in safetensors, the rest in JSON, exact to the bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from simpletuner.errors import DiskError

TENSORS, SCALARS = "optimizer-0.safetensors", "optimizer.json"  # 0 is the rank


def _named(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """name -> (parameter, its group), in the order in which the parameters were given."""
    pairs = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    return dict(zip(names, pairs, strict=True))


def save_optimizer(optimizer: torch.optim.Optimizer, names: Sequence[str], folder: Path) -> None:
    """Writes the state of every parameter; `names` are those of the parameters, in the optimizer's order.

    Settings of the groups (rate, betas, decay) are not stored: the configuration has them, so a changed one applies.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for name, (p, _) in _named(optimizer, names).items():
        scalars[name] = {}
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value.detach().to("cpu", copy=True).contiguous()
            else:
                scalars[name][key] = value
    save_file(tensors, folder / TENSORS)
    record = {"optimizer": type(optimizer).__name__, "parameters": scalars}
    (folder / SCALARS).write_text(json.dumps(record, indent=1), "utf-8")


def load_optimizer(optimizer: torch.optim.Optimizer, names: Sequence[str], folder: Path) -> bool:
    """Puts back what `save_optimizer` wrote. False, and nothing done, if it was written by another kind of optimizer.

    DiskError if it belongs to other parameters: the configuration check lets only the kind change.
    """
    record = json.loads((folder / SCALARS).read_text("utf-8"))
    if record["optimizer"] != type(optimizer).__name__:
        return False
    named = _named(optimizer, names)
    if set(named) != set(record["parameters"]):
        odd = sorted(set(named) ^ set(record["parameters"]))
        message = f"{folder / SCALARS}: state of other parameters, such as {odd[0]}"
        raise DiskError(message, fix="resume with the configuration that wrote it, or give a new output_dir")
    optimizer.state.clear()
    for name, scalars in record["parameters"].items():
        if scalars:
            optimizer.state[named[name][0]].update(scalars)
    for address, value in load_file(folder / TENSORS).items():
        name, _, key = address.rpartition("/")
        p, group = named[name]
        # As torch does it: the step counter stays with the host unless the kernels read it on the device.
        on_host = key == "step" and not (group.get("capturable") or group.get("fused"))
        optimizer.state[p][key] = value if on_host else value.to(p.device)
    return True
