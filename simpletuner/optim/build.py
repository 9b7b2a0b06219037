"""From the options to an optimizer over named parameters."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import Parameter

from simpletuner.errors import ConfigError, Problem, raise_errors
from simpletuner.optim.arguments import arguments
from simpletuner.optim.options import Optimizer
from simpletuner.optim.table import TABLE
from simpletuner.registry import did_you_mean

# Set by their own options, by the name of the optimizer or by the build itself, so never through optimizer_config.
RESERVED = {"params", "lr", "seed", "names", "args", "optim_bits", "is_paged", "gradient_release"}
# Fused kernels of these take a flag on the device that drops the update, so a bad one needs no wait for the host.
FUSED = {"torch-adam", "torch-adamw", "torch-sgd"}


def build(options: Optimizer, parameters: Mapping[str, Parameter], seed: int) -> torch.optim.Optimizer:
    """The chosen optimizer; each group knows its `initial_lr`. ConfigError for an argument that its class lacks."""
    assert options.learning_rate is not None, "the recipe fills in the default"
    name, entry = options.optimizer, TABLE[options.optimizer]
    cls = entry.load()
    signature = inspect.signature(cls).parameters
    values = dict(entry.defaults) | _chosen(options, signature) | _extra(options, signature)
    if name in FUSED and "foreach" not in values and all(p.is_cuda for p in parameters.values()):
        values.setdefault("fused", True)
    if "seed" in signature:
        _require_bf16(name, parameters)
        values |= {"seed": seed, "names": list(parameters)}
    try:
        optimizer = cls(list(parameters.values()), lr=options.learning_rate, **values)
    except (TypeError, ValueError, RuntimeError) as error:
        fix = "correct optimizer_config, optimizer_beta1, optimizer_beta2, adam_weight_decay or adam_epsilon"
        raise ConfigError(Problem(f"{name}: {error}", keys=("optimizer_config",), fix=fix)) from error
    for group in optimizer.param_groups:
        group["initial_lr"] = options.learning_rate
    return optimizer


def _chosen(options: Optimizer, signature: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Arguments that come from options of their own; every one that the class lacks is a problem."""
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    betas = (options.optimizer_beta1, options.optimizer_beta2)
    defaults = TABLE[options.optimizer].defaults
    given = {
        "betas": ("optimizer_beta1", betas if betas != (None, None) else None),
        "weight_decay": ("adam_weight_decay", options.adam_weight_decay),
        "eps": ("adam_epsilon", options.adam_epsilon),
    }
    for argument, (key, value) in given.items():
        if value is None:
            continue
        default = defaults.get(argument, signature[argument].default) if argument in signature else None
        if argument == "betas" and isinstance(default, tuple):
            first = tuple(own if mine is None else mine for mine, own in zip(betas, default, strict=False))
            values[argument] = first + default[2:]  # some have a third
        elif isinstance(default, (int, float)):
            values[argument] = value
        else:
            message = f"{key}: {options.optimizer} has no single number {argument}"
            problems.append(Problem(message, keys=(key,), fix=f"remove {key}, or choose another optimizer"))
    raise_errors(problems)
    return values


def _extra(options: Optimizer, signature: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    extra = arguments(options.optimizer_config)
    known = [n for n in signature if n not in RESERVED]
    problems = [
        Problem(
            f'optimizer_config: {options.optimizer} has no argument "{argument}"',
            keys=("optimizer_config",),
            fix=did_you_mean(argument, known),
        )
        for argument in extra
        if argument not in known
    ]
    raise_errors(problems)
    return {k: tuple(v) if isinstance(v, list) else v for k, v in extra.items()}


def _require_bf16(name: str, parameters: Mapping[str, Parameter]) -> None:
    other = next((n for n, p in parameters.items() if p.dtype != torch.bfloat16), None)
    if other is not None:
        found = str(parameters[other].dtype).removeprefix("torch.")
        message = f"{name} is for bf16 weights, and {other} is {found}"
        fix = "use optimizer=torch-adamw, or mixed_precision=bf16 with base_model_default_dtype=bf16"
        raise ConfigError(Problem(message, keys=("optimizer", "mixed_precision"), fix=fix))
