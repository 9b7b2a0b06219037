"""The gradients of one update: added up, measured and limited without the host waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from simpletuner.kernels.device import runs_triton


class Gradients:
    """All gradients of the trained parameters. With `precise`, those of 16-bit parameters are added up in fp32.

    An optimizer with an attribute `gradient_factor` shrinks them as it reads them; for others they are written anew.
    """

    def __init__(self, parameters: Sequence[Parameter], precise: bool = False, optimizer: Any = None):
        self.parameters = list(parameters)
        self.reader = optimizer if hasattr(optimizer, "gradient_factor") else None
        self.fused: Any = None  # what measures them on CUDA
        self.sums: dict[Parameter, Tensor] = {}  # fp32, only where `precise` asks for it
        if precise:
            for p in self.parameters:
                if p.dtype != torch.float32:
                    p.register_post_accumulate_grad_hook(self._move)

    def _move(self, p: Tensor) -> None:
        assert isinstance(p, Parameter) and p.grad is not None
        if p in self.sums:
            self.sums[p] += p.grad
        else:
            self.sums[p] = p.grad.float()
        p.grad = None

    def tensors(self) -> list[Tensor]:
        return [g for p in self.parameters if (g := self.sums.get(p, p.grad)) is not None]

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiplies all of them: a window with fewer micro-batches than planned was divided by too much."""
        if tensors := self.tensors():
            torch._foreach_mul_(tensors, factor)

    @torch.no_grad()
    def measure(self) -> Tensor:
        """(2,) fp32 on the device: 2-norm over all elements, largest absolute value. NaN and Inf show in the norm."""
        tensors = self.tensors()
        if not tensors:
            return torch.zeros(2)
        if self._fused(tensors):
            assert self.fused is not None
            return self.fused(tensors)
        norms = torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float32))
        largest = torch.stack(torch._foreach_norm(tensors, float("inf"))).float()
        return torch.stack([torch.linalg.vector_norm(norms), largest.max()])

    def _fused(self, tensors: Sequence[Tensor]) -> bool:
        """Whether a kernel measures these, with tables that are made when they are needed."""
        if not runs_triton(tensors[0].device):
            return False
        from simpletuner.kernels import measure  # Triton is imported where there is a device for it

        if not measure.usable(tensors):
            return False
        if self.fused is None or not self.fused.serves(tensors):
            self.fused = measure.Measure(tensors)
        return True

    @torch.no_grad()
    def clip(self, norm: Tensor, limit: float, method: Literal["norm", "value"]) -> None:
        """Shrinks the whole gradient to `limit`, or cuts single values at it. 0 means no limit."""
        tensors = self.tensors()
        if self.reader:
            self.reader.gradient_factor = None
        if limit <= 0 or not tensors:
            return
        if method == "value":
            torch._foreach_clamp_min_(tensors, -limit)
            torch._foreach_clamp_max_(tensors, limit)
            return
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)  # (), on the device
        if self.reader:
            self.reader.gradient_factor = factor
        else:
            torch._foreach_mul_(tensors, factor)

    @torch.no_grad()
    def release(self) -> None:
        """Hands the fp32 sums to the optimizer, in the parameters' own precision."""
        for p, total in self.sums.items():
            p.grad = total.to(p.dtype)
        self.sums.clear()

    def clear(self) -> None:
        self.sums.clear()
        for p in self.parameters:
            p.grad = None
