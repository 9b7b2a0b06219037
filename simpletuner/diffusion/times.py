"""How noisy the training samples are: a time in [0, 1] for each sample of the run, 1 is noise.

A time depends on the run's seed and the sample's number in the run only, so a resumed run draws the same ones.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simpletuner.diffusion import draw
from simpletuner.diffusion.options import MODES, Objective, modes

if TYPE_CHECKING:
    from torch import Tensor

FAST = (1.0,) * 7 + (0.75, 0.5, 0.25)  # mean 0.85
EDGE = 1e-5  # a draw of exactly 0 or 1 moves inside by this
NORMAL = statistics.NormalDist()


@dataclass(frozen=True)
class ShiftCurve:
    """How the shift grows with the number of image tokens; the values stand in a scheduler's configuration."""

    base_tokens: int = 256
    max_tokens: int = 4096
    base_shift: float = 0.5  # mu at base_tokens
    max_shift: float = 1.15  # mu at max_tokens; the line goes on beyond

    def shift(self, tokens: int) -> float:
        """s = exp(mu), mu linear in the number of tokens and not clamped."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return math.exp(self.base_shift + (tokens - self.base_tokens) * slope)


def shifted(t: float, s: float) -> float:
    """The time that a schedule with shift s puts in the place of t."""
    return s * t / (1 + (s - 1) * t)


class Times:
    """Draws the times of a batch as its options say."""

    def __init__(self, options: Objective, curve: ShiftCurve):
        on = modes(options)
        assert len(on) <= 1, "settle() reports two modes before this"
        self.mode = MODES[on[0]] if on else "sigmoid"
        self.options, self.curve = options, curve
        listed = options.flow_custom_timesteps or []
        self.listed = [t if max(listed) <= 1 else t / 1000 for t in listed]

    def shift(self, image_tokens: int) -> float:
        """The shift s for images of this many tokens; 1 is none."""
        if self.mode in ("custom", "fast"):
            return 1.0
        if self.options.flow_schedule_shift is not None:
            return self.options.flow_schedule_shift or 1.0
        return 1.0 if self.options.flow_schedule_auto_shift is False else self.curve.shift(image_tokens)

    def __call__(self, numbers: Sequence[int], seed: int, image_tokens: int, offset: float = 0.0) -> Tensor:
        """(B,) fp32 on the CPU. `numbers`: the samples' numbers in the run; `offset` moves the sigmoid's centre."""
        import torch

        s = self.shift(image_tokens)
        t = torch.tensor([shifted(self._time(seed, n, offset), s) for n in numbers], dtype=torch.float32)
        if self.mode in ("custom", "fast"):
            return t
        return t.masked_fill(t <= 0, EDGE).masked_fill(t >= 1, 1 - EDGE)

    def _time(self, seed: int, number: int, offset: float) -> float:
        """One time before the shift."""
        address = ("sigma", seed, number)
        if self.mode == "custom":
            n = len(self.listed)
            turn = number % n if self.options.flow_timesteps_mode == "round-robin" else draw.integer(n, *address)
            return self.listed[turn]
        if self.mode == "fast":
            return FAST[draw.integer(len(FAST), *address)]
        if self.mode == "beta":
            numbers = random.Random(draw.draw(*address))
            return numbers.betavariate(self.options.flow_beta_schedule_alpha, self.options.flow_beta_schedule_beta)
        u = draw.uniform(*address)
        if self.mode == "uniform":
            return u
        if self.mode == "mixflow":
            return 1 - math.sqrt(u)
        z = NORMAL.inv_cdf(max(u, 2.0**-54))  # standard normal
        return (1 + math.tanh(self.options.flow_sigmoid_scale * (z + offset) / 2)) / 2  # the sigmoid, without overflow
