"""Tensors into modules that were built without memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from simpletuner.kernels.weights import Plain, Room


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Makes `tensor` the frozen parameter, or the buffer, at the dotted path `name`."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    berth = getattr(owner, "berth", None)
    if berth and leaf == "weight":
        tensor = berth(Plain(tensor)).weight
        del owner.berth  # which would keep the memory when the weights move on
    if leaf in owner._parameters:
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(owner, leaf, tensor)


def put_layer(module: nn.Module, path: str, packed: Any) -> None:
    """Puts a packed layer where `path` leads, with the bias that is there, which may still be without memory."""
    owner = module.get_submodule(path)
    if berth := getattr(owner, "berth", None):
        packed.packed = berth(packed.packed)
    packed.bias = owner.bias
    module.set_submodule(path, packed)


def side_by_side(module: nn.Module, paths: Sequence[str]) -> None:
    """Linear layers whose matrices shall lie one after the other once they are filled."""
    layers: list[Any] = [module.get_submodule(path) for path in paths]
    start, room = 0, Room(sum(layer.out_features for layer in layers))
    for layer in layers:
        layer.berth = partial(room.take, start=start)
        start += layer.out_features


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that files hold, by name; what several names share has the first of them."""
    stored = module.state_dict(keep_vars=True)
    buffers = {name: tensor for name, tensor in module.named_buffers() if name in stored}
    return {**dict(module.named_parameters()), **buffers}


def unfilled(module: nn.Module) -> list[str]:
    """The tensors that still have no memory."""
    every = [*module.named_parameters(), *module.named_buffers()]
    return [name for name, tensor in every if tensor.is_meta]
