"""AdamW for bf16 weights: arithmetic in fp32, storage in bf16, and rounding that does not lose small changes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from types import ModuleType
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


@functools.cache
def fused() -> ModuleType | None:
    """The kernels that take the place of the code below on CUDA; None where Triton is missing."""
    try:
        from simpletuner.optim import adamw_bf16_kernel
    except ImportError:
        return None
    return adamw_bf16_kernel


class AdamWBF16(torch.optim.Optimizer):
    """AdamW with bf16 weights and moments.

    rounding="stochastic" rounds the weights by chance; "kahan" keeps what rounding cut off in a third bf16 tensor.
    Both round the moments by chance: nearest rounding would never let the second moment fall, because one step lowers
    it by at most a thousandth and half a bf16 step is at least 2**-9. Draws are addressed by (seed, call, tensor), so
    a resumed run repeats them. A `found_inf` other than 0, on the device, drops the update; gradients are multiplied
    by `gradient_factor`, also on the device, as they are read. A rate may be a tensor, for CUDA graphs.
    """

    _step_supports_amp_scaling = True  # the flag by which torch tells that `found_inf` is honoured
    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None
    gradient_factor: Tensor | None = None

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
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
        self._tables: dict[int, Any] = {}  # of each group that the kernel updates

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "gradients are computed before the step"
        for index, group in enumerate(self.param_groups):
            ready = [p for p in group["params"] if p.grad is not None]
            for p in ready:
                if not self.state[p]:
                    self._start(p, group)
            if ready and self._fits(ready):
                self._launch(index, ready)
                continue
            for chunk in _chunks(ready):
                self._update(chunk, group)

    def _start(self, p: Tensor, group: dict[str, Any]) -> None:
        self.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device),  # updates applied
            "calls": torch.zeros((), dtype=torch.int32, device=p.device),  # updates tried: addresses the rounding
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
        if group["rounding"] == "kahan":
            self.state[p]["compensation"] = torch.zeros_like(p)

    def _fits(self, ready: Sequence[Tensor]) -> bool:
        """Whether the kernel can do these tensors: it wants one device, one dtype of gradients, and no gaps."""
        device = ready[0].device
        kernel = fused()
        if kernel is None or not kernel.usable(device):
            return False
        dtypes = {p.grad.dtype for p in ready if p.grad is not None}
        known = len(dtypes) == 1 and dtypes <= set(kernel.GRADIENTS)
        return known and all(p.device == device and p.is_contiguous() for p in ready)

    def _launch(self, index: int, ready: Sequence[Tensor]) -> None:
        kernel, group = fused(), self.param_groups[index]
        assert kernel is not None
        states = [self.state[p] for p in ready]
        tables = self._tables.get(index)
        if tables is None or not tables.serves(ready, states):
            seeds = [draw.draw("rounding", self.seed, self.names[p]) for p in ready]
            tables = self._tables[index] = kernel.Fused(ready, states, seeds)
        tables.update([p.grad for p in ready], group, self.found_inf, self.gradient_factor)

    def _update(self, chunk: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[p] for p in chunk]
        beta1, beta2 = group["betas"]
        rate = float(group["lr"])
        steps = torch.stack([s["step"] for s in states]) + 1  # (tensors,)
        g = _flat([p.grad for p in chunk])  # (elements,), fp32, as everything below
        if self.gradient_factor is not None:
            g *= self.gradient_factor.to(g.device)
        w, m, v = _flat(chunk), _flat([s["exp_avg"] for s in states]), _flat([s["exp_avg_sq"] for s in states])
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        sizes = [p.numel() for p in chunk]
        kahan = "compensation" in states[0]
        if kahan:
            w += _flat([s["compensation"] for s in states])
        w.mul_(1 - rate * group["weight_decay"])
        size = (v / _spread(1 - beta2**steps, sizes)).sqrt_().add_(group["eps"])
        w.addcdiv_(m / _spread(1 - beta1**steps, sizes), size, value=-rate)

        device = chunk[0].device
        address = (self.seed, int(states[0]["calls"]), self.names[chunk[0]])
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
