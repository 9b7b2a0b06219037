"""Encoders whose layers wait in RAM and visit the device one after the other. They are not trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from simpletuner.memory.stream import Streamed


class Layers:
    """One element of a list of layers, as a block that runs by itself. Fulfils protocols.Block, weights aside."""

    kind = "layers"

    def __init__(self, index: int, module: nn.Module):
        self.index, self.module = index, module
        self.function = self.again = module.forward

    @property
    def weights(self) -> dict[str, Tensor]:
        """By name; views that share a parameter follow it."""
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    def rehome(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in self.weights.items():
            tensor.data = weights[name]

    def factors(self) -> None:
        return None


def stream(module: nn.Module, device: torch.device, *, depth: int = 2, ahead: bool = False) -> Streamed | None:
    """Lets the layers of the module's lists visit the device when they run; the rest of it moves there for good.

    Returns what streams them, which lives as long as the module does; None if the module has no lists.
    """
    blocks = [Layers(index, layer) for index, layer in enumerate(_listed(module))]
    blocks = [block for block in blocks if block.weights]
    streamed = Streamed(blocks, device, depth=depth, ahead=ahead) if blocks else None
    inside = {id(tensor) for block in blocks for tensor in block.weights.values()}
    for tensor in (*module.parameters(), *module.buffers()):
        if id(tensor) not in inside:
            tensor.data = tensor.data.to(device)
    for block in blocks:
        assert streamed is not None
        block.module.forward = _visiting(streamed, block)  # type: ignore[method-assign]
    return streamed


def _listed(module: nn.Module) -> Iterator[nn.Module]:
    """The elements of the outermost lists of modules, in order."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _listed(child)


def _visiting(streamed: Streamed, block: Layers) -> Callable[..., Any]:
    waiting = block.weights
    waiting = {name: tensor.data for name, tensor in waiting.items()}

    def forward(*args: Any, **kwargs: Any) -> Any:
        block.rehome(streamed.fetch(block))
        try:
            return block.function(*args, **kwargs)
        finally:
            block.rehome(waiting)
            streamed.done(block, again=False)

    return forward
