"""AdamW for bf16 weights: arithmetic in fp32, storage in bf16, and rounding that does not lose small changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from simpletuner.diffusion import draw

CHUNK = (
    1 << 23
)  # elements worked on at once: a few hundred MB of fp32 scratch, and few kernel launches for many small tensors
LOW_BITS = 1 << 16  # bf16 is the upper half of an fp32 number


def round_stochastically(x: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 -> bf16, up or down by chance so that the mean is x. Infinities and NaN stay what they are."""
    bits = x.view(torch.int32)
    noise = torch.randint(0, LOW_BITS, x.shape, generator=generator, dtype=torch.int32, device=x.device)
    rounded = (bits + noise).bitwise_and_(-LOW_BITS).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)


class AdamWBF16(torch.optim.Optimizer):
    """AdamW with bf16 weights and moments.

    rounding="stochastic" rounds the weights by chance; "kahan" keeps what rounding cut off in a third bf16 tensor.
    Both round the moments by chance: nearest rounding would never let the second moment fall, because one step lowers
    it by at most a thousandth and half a bf16 step is at least 2**-9. Draws are addressed by (seed, call, first tensor
    of the chunk), so a resumed run repeats them. A `found_inf` other than 0, on the device, drops the update.
    """

    _step_supports_amp_scaling = True  # the flag by which torch tells that `found_inf` is honoured
    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        rounding: str = "stochastic",
        *,
        seed: int,
        names: Sequence[str] | None = None,
    ):
        if not all(0 <= b < 1 for b in betas) or eps <= 0 or weight_decay < 0:
            raise ValueError(f"betas {betas}, eps {eps} or weight_decay {weight_decay} is out of range")
        if rounding not in ("stochastic", "kahan"):
            raise ValueError(f'rounding "{rounding}" is not a choice; choices: stochastic, kahan')
        super().__init__(
            params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, rounding=rounding, capturable=True)
        )
        everything = [p for group in self.param_groups for p in group["params"]]
        self.seed = seed
        self.names = dict(zip(everything, names or map(str, range(len(everything))), strict=True))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "gradients are computed before the step"
        for group in self.param_groups:
            ready = [p for p in group["params"] if p.grad is not None]
            for p in ready:
                self._start(p, group)
            for chunk in _chunks(ready):
                self._update(chunk, group)

    def _start(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros(
                (), dtype=torch.float32, device=p.device
            )  # updates applied; on the device for the guard
            state["calls"] = 0  # updates tried, counted by the host: addresses the rounding
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
            if group["rounding"] == "kahan":
                state["compensation"] = torch.zeros_like(p)

    def _update(self, chunk: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[p] for p in chunk]
        beta1, beta2 = group["betas"]
        steps = torch.stack([s["step"] for s in states]) + 1  # (tensors,)
        g = _flat([p.grad for p in chunk])  # (elements,), fp32, as everything below
        w, m, v = _flat(chunk), _flat([s["exp_avg"] for s in states]), _flat([s["exp_avg_sq"] for s in states])
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        sizes = [p.numel() for p in chunk]
        kahan = "compensation" in states[0]
        if kahan:
            w += _flat([s["compensation"] for s in states])
        w.mul_(1 - group["lr"] * group["weight_decay"])
        size = (v / _spread(1 - beta2**steps, sizes)).sqrt_().add_(group["eps"])
        w.addcdiv_(m / _spread(1 - beta1**steps, sizes), size, value=-group["lr"])

        device = chunk[0].device
        address = (self.seed, states[0]["calls"], self.names[chunk[0]])
        random = draw.generator("rounding", *address, device=device.type if device.index is None else str(device))
        stored = w.to(torch.bfloat16) if kahan else round_stochastically(w, random)
        self._store(chunk, stored)
        self._store([s["exp_avg"] for s in states], round_stochastically(m, random))
        self._store([s["exp_avg_sq"] for s in states], round_stochastically(v, random))
        if kahan:
            self._store([s["compensation"] for s in states], (w - stored.float()).to(torch.bfloat16))
        self._store([s["step"] for s in states], steps)
        for state in states:
            state["calls"] += 1

    def _store(self, targets: Sequence[Tensor], flat: Tensor) -> None:
        """Writes the chunk back, or what was there if the update is to be dropped; the host does not wait to know."""
        if self.found_inf is not None:
            old = torch.cat([t.reshape(-1) for t in targets])
            flat = torch.where(self.found_inf.to(flat.device) != 0, old, flat)
        parts = flat.split([t.numel() for t in targets])
        torch._foreach_copy_(list(targets), [part.view_as(t) for part, t in zip(parts, targets, strict=True)])


def _chunks(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one device and dtype, together at most CHUNK elements (or one larger tensor)."""
    chunk: list[Tensor] = []
    elements = 0
    for p in parameters:
        elements += p.numel()
        if chunk and not (elements <= CHUNK and p.device == chunk[0].device):
            yield chunk
            chunk, elements = [], p.numel()
        chunk.append(p)
    if chunk:
        yield chunk


def _flat(tensors: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors if t is not None]).float()


def _spread(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """(tensors,) -> (elements,): each tensor's value for all of its elements."""
    return torch.cat([value.expand(size) for value, size in zip(values.unbind(), sizes, strict=True)])
