"""Gradients of one micro-batch, recorded once for each set of shapes as a CUDA graph and replayed from then on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from simpletuner.errors import first_line
from simpletuner.kernels.device import free

Inputs = Mapping[str, Tensor]
Loss = Callable[[Inputs], Tensor]  # tensors on the device -> a scalar with a gradient
MOST = 32  # graphs; each keeps some tens of MB of launch records on the device


@dataclass
class Recording:
    graph: Any  # torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]  # the graph reads them here
    loss: Tensor  # and writes this


def signature(inputs: Inputs) -> tuple[Any, ...]:
    """What a recording is for: names, shapes and dtypes."""
    return tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(inputs.items()))


class Graphs:
    """Replays of `loss` and its backward pass. Gradients arrive in `.grad` as without graphs, and are added up there.

    All recordings share one pool of memory and one set of gradient buffers. `run` returns None for shapes that it will
    not record (too many, or it failed): then the caller computes as ever. Record only what has run once as it is, so
    that kernels are loaded and libraries have their handles.
    """

    def __init__(self, loss: Loss, parameters: Sequence[Parameter]):
        self.loss, self.parameters = loss, list(parameters)
        self.recordings: dict[tuple[Any, ...], Recording] = {}
        self.failure = ""  # of the last attempt to record
        self._refused: set[tuple[Any, ...]] = set()  # what could not be recorded
        self._buffers: list[Tensor] = []
        self._pool: Any = None

    def run(self, inputs: Inputs, divisor: float) -> Tensor | None:
        """The loss () of these inputs; the gradient of loss / divisor was added to `.grad` (set where it was None)."""
        key = (*signature(inputs), divisor)
        if key not in self.recordings and (
            key in self._refused or len(self.recordings) >= MOST or not self._record(key, inputs, divisor)
        ):
            return None
        recording = self.recordings[key]
        self._gather()
        for name, tensor in inputs.items():
            recording.inputs[name].copy_(tensor, non_blocking=True)
        recording.graph.replay()
        return recording.loss.clone()  # the pool's memory serves the next recording too

    def release(self) -> None:
        """Gives the recordings' memory back; shapes that come again are recorded again."""
        self.recordings.clear()
        free()

    def _gather(self) -> None:
        """Makes the buffers the gradients: from zero, or from what other micro-batches of the update have added up."""
        gradients = [parameter.grad for parameter in self.parameters]
        if gradients[0] is self._buffers[0]:
            return
        if all(gradient is None for gradient in gradients):  # what an update that was broken off left there goes
            torch._foreach_zero_(self._buffers)
        for parameter, gradient, buffer in zip(self.parameters, gradients, self._buffers, strict=True):
            if gradient is not None:
                buffer.copy_(gradient)
            parameter.grad = buffer

    def _record(self, key: tuple[Any, ...], inputs: Inputs, divisor: float) -> bool:
        free()
        if not self._buffers:
            self._buffers = [torch.zeros_like(p) for p in self.parameters]
        try:
            self.recordings[key] = self._captured(inputs, divisor)
            return True
        except Exception as error:  # an operation that cannot be recorded, or no memory: say so, and go on without
            self.failure = f"{type(error).__name__}: {first_line(error)}"
            self._refused.add(key)
        # From here on nothing refers to the tensors of the attempt.
        if not self.recordings:
            self._buffers = []
        torch.cuda.synchronize()
        free()
        return False

    def _captured(self, inputs: Inputs, divisor: float) -> Recording:
        if not self.recordings:
            self._pool = torch.cuda.graph_pool_handle()
        own = {name: tensor.clone() for name, tensor in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            loss = self.loss(own)
            gradients = torch.autograd.grad(loss / divisor, self.parameters)
            torch._foreach_add_(self._buffers, list(gradients))
            loss = loss.detach()
            del gradients
        return Recording(graph, own, loss)
