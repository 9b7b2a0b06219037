"""Whole parts of a model that leave the device for a while, or come to it for one. Only what is frozen moves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from simpletuner.memory.arena import tensors
from simpletuner.protocols import Block

CPU = torch.device("cpu")


def frozen(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Parameters that are not trained, buffers and packed weights, each once."""
    found: dict[int, Tensor] = {}
    for module in modules:
        held = [p for p in module.parameters() if not p.requires_grad] + list(module.buffers())
        held += [leaf for one in module.modules() for leaf in tensors(getattr(one, "packed", None))]
        found.update((id(tensor), tensor) for tensor in held)
    return list(found.values())


@contextmanager
def aside(module: nn.Module, blocks: Sequence[Block] = ()) -> Iterator[None]:
    """While inside, the frozen weights of the module wait in RAM; their places on the device are free.

    blocks: those that run on weights of the module. Afterwards addresses have changed: no CUDA graph survives it.
    """
    where = {id(block): _device(block) for block in blocks}
    leaving = [block for block in blocks if where[id(block)] != CPU]
    for block in leaving:
        block.rehome(_at(block, CPU))
    rest = [(tensor, tensor.device) for tensor in frozen([module]) if tensor.device != CPU]
    try:
        for tensor, _ in rest:
            tensor.data = _sent(tensor.data, CPU)
        _give_back()
        yield
    finally:
        for block in leaving:
            block.rehome(_at(block, where[id(block)]))
        for tensor, device in rest:
            tensor.data = _sent(tensor.data, device)


@contextmanager
def visiting(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """While inside, the modules are on the device; afterwards they wait in RAM."""
    coming = [(tensor, tensor.data) for tensor in frozen(modules) if tensor.device.type != device.type]
    try:
        for tensor, waiting in coming:
            tensor.data = _sent(waiting, device)
        yield
    finally:
        for tensor, waiting in coming:  # it has not changed: nothing is copied back
            tensor.data = waiting
        _give_back()


def _device(block: Block) -> torch.device:
    return next(iter(tensors(block.weights))).device


def _at(block: Block, device: torch.device) -> object:
    return tree_map(lambda leaf: _sent(leaf, device) if isinstance(leaf, Tensor) else leaf, block.weights)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device)


def _give_back() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
