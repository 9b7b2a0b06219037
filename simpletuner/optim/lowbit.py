"""torchao's AdamW with state in 8 or 4 bits or fp8; it compiles its update once for each shape of a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchao import optim


class Rated(torch.optim.Optimizer):
    """Goes before a class of torchao, which wants its rate as a tensor, or it would compile anew for each rate."""

    _new_buffer: Any

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "gradients are computed before the step"
        for group in self.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)
        super().step()

    @torch.no_grad()
    def start(self, p: Tensor) -> None:
        """The state of a parameter as before its first update."""
        state = self.state[p]
        state["step"] = torch.tensor(0.0)
        state["exp_avg"], state["exp_avg_sq"] = self._new_buffer(p, True), self._new_buffer(p, False)
        if any(group["amsgrad"] for group in self.param_groups):
            state["max_exp_avg_sq"] = self._new_buffer(p, False)


class AoAdamW8bit(Rated, optim.AdamW8bit): ...


class AoAdamW4bit(Rated, optim.AdamW4bit): ...


class AoAdamWFp8(Rated, optim.AdamWFp8): ...
