"""How the transformer runs in this run: its attention kernel, its blocks' runner, and how steps become fast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from simpletuner import residence
from simpletuner.config import Config
from simpletuner.events import EventLog
from simpletuner.kernels import attention
from simpletuner.kernels.compile import Compiled, prepare
from simpletuner.memory.checkpointing import recompute
from simpletuner.memory.options import Memory
from simpletuner.memory.runner import Runner
from simpletuner.optim.options import Optimizer
from simpletuner.protocols import Adapter, Functional, ModelFamily
from simpletuner.training.options import Speed, Training
from simpletuner.training.pace import Pace
from simpletuner.training.precision import Precision

MANY_SHAPES = 24  # of batches: more are compiled as one, with lengths that may differ


@dataclass
class Engine:
    """What the recipe hands to the trainer, and one line about it."""

    functional: Functional | None  # None: the adapter needs the modules themselves
    pace: Callable[[Any, Any], Any] | None
    line: str


def build(
    config: Config,
    family: ModelFamily,
    denoiser: nn.Module,
    adapter: Adapter,
    precision: Precision,
    events: EventLog,
    num_shapes: int,
) -> Engine:
    """Makes the denoiser run as the options say. num_shapes: how many different shapes of batches there will be."""
    memory, speed = config[Memory], config[Speed]
    interval = memory.gradient_checkpointing_interval if memory.gradient_checkpointing else 0
    low_rank = adapter.low_rank()
    if low_rank is None:
        if interval:
            recompute(family.blocks(denoiser), interval, residence.activations(config, precision.device))
        residence.residency(config, None, precision.device)  # says so if blocks were to move
        return Engine(None, None, f"{adapter.kind} runs on the modules as they are")
    chosen = attention.choose(speed.attention_mechanism, precision.device, precision.dtype)
    functional = family.functional(denoiser, low_rank, chosen.training)
    compiled = _compiled(config, functional, precision, num_shapes)
    where = residence.residency(config, functional, precision.device)
    runner = Runner(
        interval, residency=where, store=residence.activations(config, precision.device), functions=compiled
    )
    functional.runner, functional.prologue = runner, Runner(residency=where)
    record = precision.device.type == "cuda" and _recorded(config, runner, precision)
    parts = [f"attention {chosen.name}"]
    parts += ["compiled blocks"] if compiled else []
    parts += ["recorded steps"] if record else []
    if not compiled and not record:
        return Engine(functional, None, ", ".join(parts))
    pace = functools.partial(
        Pace,
        parameters=list(adapter.parameters().values()),
        compiled=list(compiled.values()),
        record=record,
        plain_calls=0 if config[Training].deterministic or speed.dynamo_backend != "auto" else 1,
        sparing=runner.sparing if compiled else nullcontext,
        tell=functools.partial(_tell, events),
    )
    return Engine(functional, pace, ", ".join(parts))


def _compiled(config: Config, functional: Functional, precision: Precision, num_shapes: int) -> dict[str, Compiled]:
    """The blocks' functions by kind, to be compiled; empty if they stay plain."""
    speed = config[Speed]
    backend = speed.dynamo_backend
    if backend == "auto":
        backend = "inductor" if precision.device.type == "cuda" else "no"
    if backend in ("no", "cudagraphs"):
        return {}
    settings: dict[str, Any] = {
        "backend": backend,
        "dynamic": speed.dynamo_dynamic or num_shapes > MANY_SHAPES,
    }
    if speed.dynamo_mode not in ("", "default", "reduce-overhead"):  # the last means recorded steps
        settings["mode"] = speed.dynamo_mode
    prepare(num_shapes, config[Memory].activation_memory_budget)
    functions = {block.kind: block.function for block in functional.blocks}
    strict = speed.dynamo_backend != "auto"
    return {
        kind: Compiled(function, strict=strict, fullgraph=strict and speed.dynamo_fullgraph, **settings)
        for kind, function in functions.items()
    }


def _recorded(config: Config, runner: Runner, precision: Precision) -> bool:
    """Whether steps become CUDA graphs."""
    speed = config[Speed]
    wanted = speed.dynamo_backend in ("auto", "cudagraphs") or speed.dynamo_mode == "reduce-overhead"
    exact = config[Optimizer].gradient_precision == "fp32"  # moves gradients aside as they come
    return wanted and runner.capturable and not residence.wanders(config) and precision.scaler is None and not exact


def _tell(events: EventLog, severity: str, message: str) -> None:
    events.emit("log", severity, message=message)
