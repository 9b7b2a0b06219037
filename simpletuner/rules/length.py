"""How long a run is: in steps or in passes over the data, and its warm-up within."""

from __future__ import annotations

from simpletuner.config import Config
from simpletuner.errors import Problem
from simpletuner.optim.options import Optimizer
from simpletuner.rules.findings import error
from simpletuner.training.options import Training

LENGTH = ("max_train_steps", "num_train_epochs")


def not_both_lengths(config: Config) -> Problem | None:
    if config[Training].max_train_steps and config[Training].num_train_epochs:
        fix = "keep one, and set the other to 0"
        return error("max_train_steps and num_train_epochs are both set", *LENGTH, fix=fix)
    return None


def some_length(config: Config) -> Problem | None:
    if not config[Training].max_train_steps and not config[Training].num_train_epochs:
        return error("nothing says how long to train", *LENGTH, fix="set max_train_steps, for example 1000")
    return None


def warmup_ends(config: Config) -> Problem | None:
    steps, warmup = config[Training].max_train_steps, config[Optimizer].lr_warmup_steps
    if steps and warmup > steps:
        message = f"lr_warmup_steps {warmup} is longer than the run of {steps} steps"
        return error(message, "lr_warmup_steps", "max_train_steps", fix=f"lr_warmup_steps={steps // 10}")
    return None
