"""The learning rate as a pure function of the step: nothing to save, so a changed option applies on resume."""

from __future__ import annotations

import math

from simpletuner.optim.options import Optimizer


def peak(options: Optimizer, samples_per_step: int) -> float:
    """The full rate: `learning_rate`, multiplied as `lr_scale` or `lr_scale_sqrt` say."""
    assert options.learning_rate is not None, "the recipe fills in the default"
    if options.lr_scale:
        return options.learning_rate * samples_per_step
    return options.learning_rate * math.sqrt(samples_per_step) if options.lr_scale_sqrt else options.learning_rate


def factor(options: Optimizer, n: int, total: int) -> float:
    """What to multiply the full rate by in optimizer step n, 0 for the first, of `total` (training.md section 6)."""
    assert options.learning_rate is not None
    warmup = options.lr_warmup_steps
    if n < warmup:
        return (n + 1) / warmup  # the first update is not wasted on a rate of zero
    kind = options.lr_scheduler
    if kind in ("constant", "constant_with_warmup"):
        return 1.0
    p = min(max((n - warmup) / max(1, total - warmup), 0.0), 1.0)
    cycles = options.lr_num_cycles
    if kind == "linear":
        height = 1 - p
    elif kind == "polynomial":
        height = (1 - p) ** options.lr_power
    elif kind == "cosine":
        height = (1 + math.cos(math.pi * p)) / 2
    elif kind == "cosine_with_restarts":
        height = (1 + math.cos(math.pi * math.modf(cycles * p)[0])) / 2 if p < 1 else 0.0
    else:
        assert kind == "sine", kind
        height = (1 + math.cos(2 * math.pi * cycles * p)) / 2
    end = options.lr_end / options.learning_rate
    return end + (1 - end) * height
