"""Weights into a module, tensor by tensor: the host never holds more than one tensor besides the module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from simpletuner.errors import ConfigError
from simpletuner.modules import put, put_layer, tensors, unfilled
from simpletuner.protocols import Home

Pack = Callable[[str, torch.Tensor], nn.Module | None]  # path and matrix of a linear layer -> the layer in its place


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


def fill(
    module: nn.Module,
    files: Sequence[Path],
    *,
    device: torch.device,
    dtype: torch.dtype,
    pack: Pack | None = None,
    home: Home | None = None,
    names: Mapping[str, str | None] | None = None,
) -> None:
    """Frozen weights for a module built on the meta device. Strict: every tensor once, none left over, equal shapes.

    Each tensor is cast and packed on `device`, and stays where `home` says; that is `device` unless it is given.
    names: names in the files -> names in the module, where they differ; None for what the module has no use for.
    """
    names = names or {}
    expected = {name: tuple(tensor.shape) for name, tensor in tensors(module).items()}
    found: dict[str, list] = {}
    for name, places in headers(files).items():
        if (own := names.get(name, name)) is not None:
            found.setdefault(own, []).extend(places)
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
                if (own := names.get(name, name)) is None:
                    continue
                tensor = file.get_tensor(name)  # a view of the mapped file
                kind = dtype if tensor.is_floating_point() else tensor.dtype
                _place(module, own, tensor.to(device=device, dtype=kind, copy=True), pack, home)
    left = unfilled(module)
    assert not left, f"tensors that no file fills: {left}"


def _place(module: nn.Module, name: str, tensor: torch.Tensor, pack: Pack | None, home: Home | None) -> None:
    """Puts a tensor into the module, or what its layer is packed into in place of the layer."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    packed = pack(path, tensor) if pack and leaf == "weight" and isinstance(owner, nn.Linear) else None
    if packed is None:
        put(module, name, tensor if home is None else tensor.to(home(name)))
        return
    put_layer(module, path, packed if home is None else packed.to(home(path)))
