"""The update of `adamw_bf16` in one launch over all tensors of a group: each number is read once and written once.

The plain twin is `AdamWBF16._update`. Needs Triton; the arithmetic is that of training.md section 5, in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from simpletuner.kernels.device import runs_triton
from simpletuner.kernels.tables import Addresses, Blocks, capturing, upload

HALF = 1024  # numbers of half a block; a block is one program's work
ROUNDS = 7  # of Philox4x32: the fewest that pass the tests of its authors (Salmon et al. 2011)
GRADIENTS = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@triton.jit
def _by_chance(x, noise):
    """fp32 -> bf16, up or down so that the mean is x; noise is in [0, 2**16). Inf and NaN stay what they are."""
    bits = x.to(tl.int32, bitcast=True)
    finite = (bits & 0x7F800000) != 0x7F800000
    rounded = ((bits + noise) & -65536).to(tl.float32, bitcast=True)
    return tl.where(finite, rounded, x).to(tl.bfloat16)


@triton.jit
def _address(table, tensor, dtype: tl.constexpr, EVEN: tl.constexpr):
    address = tl.load(table + tensor).to(tl.pointer_type(dtype))
    if EVEN:
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def _half(
    w, m, v, c, g, at, inside, noise_w, noise_m, noise_v,
    factor, shrink, rate, unbias, eps, beta1, rest1, beta2, rest2, KAHAN: tl.constexpr,
):  # fmt: skip
    """Half a block: moments, weight, and what rounding cuts off it."""
    gradient = tl.load(g + at, mask=inside, other=0.0).to(tl.float32) * factor
    first = tl.load(m + at, mask=inside, other=0.0).to(tl.float32) * beta1 + gradient * rest1
    second = tl.load(v + at, mask=inside, other=0.0).to(tl.float32) * beta2 + gradient * gradient * rest2
    weight = tl.load(w + at, mask=inside, other=0.0).to(tl.float32)
    if KAHAN:
        weight += tl.load(c + at, mask=inside, other=0.0).to(tl.float32)
    weight = weight * shrink - rate * first / (tl.sqrt(second) * unbias + eps)
    if KAHAN:
        stored = weight.to(tl.bfloat16)
        tl.store(c + at, (weight - stored.to(tl.float32)).to(tl.bfloat16), mask=inside)
    else:
        stored = _by_chance(weight, noise_w)
    tl.store(w + at, stored, mask=inside)
    tl.store(m + at, _by_chance(first, noise_m), mask=inside)
    tl.store(v + at, _by_chance(second, noise_v), mask=inside)


@triton.jit
def _adamw(
    weights, firsts, seconds, rests, gradients, sizes, owners, indices, keys, steps, calls, dropped, factor, rate,
    decay, eps, beta1, rest1, log1, beta2, rest2, log2,
    GRADIENT: tl.constexpr, KAHAN: tl.constexpr, EVEN: tl.constexpr, DEVICE_RATE: tl.constexpr, HALF: tl.constexpr,
    ROUNDS: tl.constexpr,
):  # fmt: skip
    """One block of one tensor. rest is 1 - beta and log its logarithm, which fp32 holds better than beta itself."""
    if tl.load(dropped) != 0:
        return
    block = tl.program_id(0)
    tensor = tl.load(owners + block)
    index = tl.load(indices + block)
    size = tl.load(sizes + tensor)
    if EVEN:
        size = tl.multiple_of(size, 16)
    w = _address(weights, tensor, tl.bfloat16, EVEN)
    m = _address(firsts, tensor, tl.bfloat16, EVEN)
    v = _address(seconds, tensor, tl.bfloat16, EVEN)
    c = _address(rests, tensor, tl.bfloat16, EVEN)
    g = _address(gradients, tensor, GRADIENT, EVEN)

    lr = tl.load(rate).to(tl.float32) if DEVICE_RATE else rate
    step = (tl.load(steps + tensor) + 1).to(tl.float64)
    unbias1 = (1 / (1 - tl.exp(step * log1))).to(tl.float32)
    unbias2 = tl.sqrt(1 / (1 - tl.exp(step * log2))).to(tl.float32)
    scale = tl.load(factor)
    shrink = 1 - lr * decay
    lr *= unbias1

    part = tl.arange(0, HALF)
    counter = index * HALF + part  # one draw of 128 bits serves two numbers, three times 16 bits each
    zero = counter * 0
    a, b, ab, _ = tl.philox(tl.load(keys + tensor), counter, zero + tl.load(calls + tensor), zero, zero, ROUNDS)
    a, b, ab = a.to(tl.int32, bitcast=True), b.to(tl.int32, bitcast=True), ab.to(tl.int32, bitcast=True)
    at = index.to(tl.int64) * (2 * HALF) + part
    _half(w, m, v, c, g, at, at < size, a & 0xFFFF, (a >> 16) & 0xFFFF, ab & 0xFFFF,
          scale, shrink, lr, unbias2, eps, beta1, rest1, beta2, rest2, KAHAN)  # fmt: skip
    at += HALF
    _half(w, m, v, c, g, at, at < size, b & 0xFFFF, (b >> 16) & 0xFFFF, (ab >> 16) & 0xFFFF,
          scale, shrink, lr, unbias2, eps, beta1, rest1, beta2, rest2, KAHAN)  # fmt: skip


@triton.jit
def _count(steps, calls, dropped, count, BLOCK: tl.constexpr):
    """Updates applied and updates tried, of every tensor."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    applied = tl.where(tl.load(dropped) == 0, 1.0, 0.0)
    tl.store(steps + at, tl.load(steps + at, mask=inside) + applied, mask=inside)
    tl.store(calls + at, tl.load(calls + at, mask=inside) + 1, mask=inside)


def usable(device: torch.device) -> bool:
    """Whether the device computes with bf16 itself."""
    if device.type != "cuda":
        return runs_triton(device)
    return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)


class Fused:
    """The tables of some tensors with their states, and the launches that update them.

    The counters of all states become views of two tensors, and stay on the device: a CUDA graph counts as it replays.
    Tables are made outside a graph, so one step must run before a graph records one.
    """

    def __init__(self, parameters: Sequence[Tensor], states: Sequence[dict[str, Any]], seeds: Sequence[int]):
        device = parameters[0].device
        assert not capturing(device), "take one step before a CUDA graph records one"
        self.device, self.states = device, list(states)
        self.blocks = Blocks([p.numel() for p in parameters], 2 * HALF, device)
        self.parameters, self.gradients = Addresses(device), Addresses(device)
        self.kahan = "compensation" in states[0]
        self.kept = [Addresses(device) for _ in range(3 if self.kahan else 2)]
        self.steps = torch.stack([s["step"] for s in states])  # (tensors,), fp32
        self.calls = torch.stack([torch.as_tensor(s["calls"], dtype=torch.int32, device=device) for s in states])
        for state, step, call in zip(states, self.steps, self.calls, strict=True):
            state["step"], state["calls"] = step, call
        self.keys = upload([seed - 2**64 if seed >= 2**63 else seed for seed in seeds], device)[1]  # as signed numbers
        self.nothing = torch.zeros(1, device=device)
        self.one = torch.ones(1, device=device)
        self._tables = self._write(parameters)

    def _write(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Tables of weights, moments and compensations."""
        names = ("exp_avg", "exp_avg_sq", "compensation")[: len(self.kept)]
        kept = [table.of([s[name] for s in self.states]) for table, name in zip(self.kept, names, strict=True)]
        return [self.parameters.of(parameters), *kept]

    def serves(self, parameters: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> bool:
        """Whether the tables are those of these tensors, where they lie now."""
        same = len(states) == len(self.states) and all(a is b for a, b in zip(states, self.states, strict=True))
        return same and [p.data_ptr() for p in parameters] == self.parameters.known

    def update(
        self, gradients: Sequence[Tensor], group: Mapping[str, Any], dropped: Tensor | None, factor: Tensor | None
    ) -> None:
        """One step. On the device: dropped, not 0 to leave all as it is, and factor, which multiplies the gradients."""
        whole = [g if g.is_contiguous() else g.contiguous() for g in gradients]
        table = self.gradients.of(whole)
        weights, firsts, seconds, *rests = self._tables
        beta1, beta2 = map(float, group["betas"])
        rate = group["lr"]
        dropped = self.nothing if dropped is None else dropped.to(self.device, torch.float32)
        factor = self.one if factor is None else factor.to(self.device, torch.float32)
        aligned = all(t.aligned for t in (self.parameters, self.gradients, *self.kept))
        _adamw[(self.blocks.count,)](
            weights, firsts, seconds, rests[0] if rests else firsts, table,
            self.blocks.sizes, self.blocks.owners, self.blocks.indices, self.keys, self.steps, self.calls,
            dropped, factor, rate.to(self.device) if isinstance(rate, Tensor) else float(rate),
            float(group["weight_decay"]), float(group["eps"]),
            beta1, 1 - beta1, _log(beta1), beta2, 1 - beta2, _log(beta2),
            GRADIENT=GRADIENTS[whole[0].dtype], KAHAN=self.kahan, EVEN=aligned and self.blocks.even,
            DEVICE_RATE=isinstance(rate, Tensor), HALF=HALF, ROUNDS=ROUNDS,
        )  # fmt: skip
        count = len(self.states)
        _count[(triton.cdiv(count, 1024),)](self.steps, self.calls, dropped, count, BLOCK=1024)


def _log(beta: float) -> float:
    return math.log(beta) if beta else -math.inf
