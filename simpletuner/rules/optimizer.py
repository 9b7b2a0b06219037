"""The update rule with its schedule, its clipping, and when it steps."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config import Config
from simpletuner.errors import Problem
from simpletuner.optim.options import FALLING, Optimizer
from simpletuner.optim.table import CLIPS_ITSELF
from simpletuner.rules.findings import error, notice
from simpletuner.training.options import Training

SCHEDULE_FREE = "adamw_schedulefree"
EARLY, ACCUMULATION, CLIP = "optimizer_release_gradients", "gradient_accumulation_steps", "grad_clip_method"


def rate_falls(config: Config) -> Problem | None:
    optimizer = config[Optimizer]
    rate, end = optimizer.learning_rate, optimizer.lr_end
    if optimizer.lr_scheduler in FALLING and rate and end >= rate:
        message = f"lr_end {end:g} is not below learning_rate {rate:g}: it would not fall"
        fix = f"lr_end={rate / 10:g}, or lr_scheduler=constant"
        return error(message, "lr_end", "learning_rate", "lr_scheduler", fix=fix)
    return None


def schedule_free_has_no_schedule(config: Config) -> Problem | None:
    optimizer = config[Optimizer]
    if optimizer.optimizer == SCHEDULE_FREE and optimizer.lr_scheduler in FALLING:
        message = f"{SCHEDULE_FREE} finds its own way down, and lr_scheduler is {optimizer.lr_scheduler}"
        return error(message, "optimizer", "lr_scheduler", fix="lr_scheduler=constant")
    return None


def clips_once(config: Config) -> Problem | None:
    optimizer = config[Optimizer]
    if optimizer.optimizer in CLIPS_ITSELF and optimizer.max_grad_norm:
        message = f"{optimizer.optimizer} limits its own updates: the gradient is measured and not clipped"
        return notice(message, "optimizer", "max_grad_norm", fix="max_grad_norm=0 says so")
    return None


def released_gradients_are_whole(config: Config) -> Iterator[Problem]:
    """A weight that steps as its gradient arrives has no later pass to wait for, and knows no other gradient."""
    optimizer, passes = config[Optimizer], config[Training].gradient_accumulation_steps
    if not optimizer.optimizer_release_gradients:
        return
    if passes > 1:
        message = f"{EARLY} steps in each pass, and {ACCUMULATION} is {passes}"
        yield error(message, EARLY, ACCUMULATION, fix=f"{ACCUMULATION}=1, or {EARLY}=false")
    if optimizer.grad_clip_method == "norm" and optimizer.max_grad_norm:
        message = f"{EARLY} never sees the whole gradient, whose norm {CLIP}=norm limits"
        yield error(message, EARLY, CLIP, "max_grad_norm", fix=f"{CLIP}=value, or max_grad_norm=0")
