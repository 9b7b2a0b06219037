"""bitsandbytes' optimizers, whose launches follow each other without a wait, and whose state can be put back."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes import optim
from torch import Tensor


class Queued(torch.optim.Optimizer):
    """Goes before a class of bitsandbytes, which waits for the device after each tensor."""

    is_paged: bool
    init_state: Any
    prefetch_state: Any
    update_step: Any
    _cpu_paged_warned = True  # a rule says it before the run: without a GPU there is nothing to page

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "gradients are computed before the step"
        for group_index, group in enumerate(self.param_groups):
            for index, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.init_state(group, p, group_index, index)
                self.prefetch_state(p)
                self.update_step(group, p, group_index, index)
        if self.is_paged and torch.cuda.is_available():
            torch.cuda.synchronize()  # sync point: the host may read what lies in memory that both share

    @torch.no_grad()
    def start(self, p: Tensor) -> None:
        """The state of a parameter as before its first update; paged where the optimizer is."""
        for group_index, group in enumerate(self.param_groups):
            for index, other in enumerate(group["params"]):
                if other is p:
                    self.init_state(group, p, group_index, index)


class BnbAdamW(Queued, optim.AdamW): ...


class BnbAdamW8bit(Queued, optim.AdamW8bit): ...


class BnbPagedAdamW(Queued, optim.PagedAdamW): ...


class BnbPagedAdamW8bit(Queued, optim.PagedAdamW8bit): ...


class BnbAdam(Queued, optim.Adam): ...


class BnbAdam8bit(Queued, optim.Adam8bit): ...


class BnbLion(Queued, optim.Lion): ...


class BnbLion8bit(Queued, optim.Lion8bit): ...


class BnbPagedLion(Queued, optim.PagedLion): ...


class BnbPagedLion8bit(Queued, optim.PagedLion8bit): ...


class BnbAdagrad(Queued, optim.Adagrad): ...


class BnbAdagrad8bit(Queued, optim.Adagrad8bit): ...


class BnbAdEMAMix(Queued, optim.AdEMAMix): ...


class BnbAdEMAMix8bit(Queued, optim.AdEMAMix8bit): ...


class BnbPagedAdEMAMix(Queued, optim.PagedAdEMAMix): ...


class BnbPagedAdEMAMix8bit(Queued, optim.PagedAdEMAMix8bit): ...
