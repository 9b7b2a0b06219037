"""Optimizer state on disk without pickle: tensors in safetensors, the rest in JSON, exact to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from simpletuner.errors import DiskError
from simpletuner.protocols import CountsInGroups, StartsState

TENSORS, SCALARS = "optimizer-0.safetensors", "optimizer.json"  # 0 is the rank


def _named(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """name -> (parameter, its group), in the order in which the parameters were given."""
    pairs = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    return dict(zip(names, pairs, strict=True))


def _parts(key: str, value: Tensor) -> dict[str, Tensor]:
    """The plain tensors that a tensor is made of, by name: itself, or codes and scales; 8-bit floats as bytes."""
    if is_traceable_wrapper_subclass(value):
        names, _ = value.__tensor_flatten__()  # type: ignore[attr-defined]
        return {k: v for name in names for k, v in _parts(f"{key}.{name}", getattr(value, name)).items()}
    value = value.detach()
    return {key: value.view(torch.uint8) if value.is_floating_point() and value.itemsize == 1 else value}


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
                parts = {f"{name}/{part}": t for part, t in _parts(key, value).items()}
                tensors |= {address: t.to("cpu", copy=True).contiguous() for address, t in parts.items()}
            else:
                scalars[name][key] = value
    save_file(tensors, folder / TENSORS)
    record: dict[str, Any] = {"optimizer": type(optimizer).__name__, "parameters": scalars}
    if isinstance(optimizer, CountsInGroups):
        record["groups"] = optimizer.counts()
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
    tensors: dict[str, dict[str, Tensor]] = {name: {} for name in named}
    for address, value in load_file(folder / TENSORS).items():
        name, _, key = address.rpartition("/")
        tensors[name][key] = value
    for name, (p, group) in named.items():
        _put_back(optimizer, p, group, record["parameters"][name], tensors[name])
    if isinstance(optimizer, CountsInGroups):
        optimizer.count_from(record["groups"])
    return True


def _put_back(
    optimizer: torch.optim.Optimizer,
    p: Tensor,
    group: Mapping[str, Any],
    scalars: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    """The state of one parameter, into the tensors that are there: what reads them by address goes on reading them."""
    if not scalars and not tensors:  # saved before its first update
        optimizer.state.pop(p, None)
        return
    if isinstance(optimizer, StartsState) and not optimizer.state.get(p):
        optimizer.start(p)
    state = optimizer.state[p]
    there = {
        part: t for key, value in state.items() if isinstance(value, Tensor) for part, t in _parts(key, value).items()
    }
    state.update(scalars)
    for key, value in tensors.items():
        old = there.get(key)
        if old is not None and (old.shape, old.dtype) == (value.shape, value.dtype):
            old.copy_(value)
        else:
            # As torch does it: the step counter stays with the host unless the kernels read it on the device.
            on_host = key == "step" and not (group.get("capturable") or group.get("fused"))
            state[key] = value if on_host else value.to(p.device)
