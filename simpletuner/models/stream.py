"""Weights into a module, tensor by tensor: the host never holds more than one tensor besides the module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from simpletuner.errors import ConfigError


def headers(files: Sequence[Path]) -> dict[str, list[tuple[Path, tuple[int, ...]]]]:
    """Tensor name -> every (file, shape) under which it is found; reads no weights."""
    found: dict[str, list[tuple[Path, tuple[int, ...]]]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    found.setdefault(name, []).append((path, tuple(file.get_slice(name).get_shape())))
        except Exception as error:  # safetensors raises its own type for a torn file
            raise ConfigError(f"{path} cannot be read: {error}", fix="copy or download the file again") from error
    return found


def differences(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, list]) -> list[str]:
    """What keeps the files from being exactly the module's weights: one line a tensor."""
    lines = [f"missing: {name}" for name in expected if name not in found]
    lines += [f"left over: {name}" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        places = found[name]
        if len(places) > 1:
            lines.append(f"found twice: {name} in {', '.join(path.name for path, _ in places)}")
        elif places[0][1] != expected[name]:
            lines.append(f"shape: {name} is {list(places[0][1])}, the configuration says {list(expected[name])}")
    return lines


def fill(module: nn.Module, files: Sequence[Path], *, device: torch.device, dtype: torch.dtype) -> None:
    """Frozen weights for a module built on the meta device. Strict: every tensor once, none left over, equal shapes."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = headers(files)
    lines = differences(expected, found)
    if lines:
        more = [f"and {len(lines) - 8} more"] if len(lines) > 8 else []
        raise ConfigError(
            f"the weights in {files[0].parent} do not fit their configuration ({len(lines)} tensors differ)",
            fix="check that config.json and the weights come from the same model, and that all shards are there",
            details=lines[:8] + more,
        )
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_tensor(name)  # a view of the mapped file
                kind = dtype if tensor.is_floating_point() else tensor.dtype
                _put(module, name, tensor.to(device=device, dtype=kind, copy=True))
    left = [name for name, tensor in module.named_buffers() if tensor.is_meta]
    assert not left, f"buffers that no file fills: {left}"


def _put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(owner, leaf, tensor)
