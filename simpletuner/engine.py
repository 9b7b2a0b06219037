"""How the transformer runs in this run: its attention kernel, its blocks' runner, and how steps become fast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

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
RECORDING = ("reduce-overhead", "max-autotune")  # modes of the compiler that ask for recorded steps

Stay = Callable[[], AbstractContextManager[None]]


@dataclass
class Engine:
    """What the recipe hands to the trainer, and one line about it."""

    functional: Functional | None  # None: the adapter needs the modules themselves
    pace: Callable[[Any, Any], Any] | None
    line: str
    sampling: Stay = nullcontext  # to be within while pictures are made


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
    kernel = _attention(config, precision, events)
    functional = family.functional(denoiser, low_rank, kernel.attention)
    compiled = _compiled(config, functional, precision, num_shapes)
    if memory.activation_memory_budget < 1 and not compiled:
        _tell(events, "notice", "activation_memory_budget has no effect: blocks run uncompiled")
    where = residence.residency(config, functional, precision.device)
    runner = Runner(
        interval, residency=where, store=residence.activations(config, precision.device), functions=compiled
    )
    functional.runner, functional.prologue = runner, Runner(residency=where)
    record = _recorded(config, runner, precision, events)
    plain_calls = 0 if config[Training].deterministic or speed.dynamo_backend != "auto" else 1
    line = _line(kernel.name, bool(compiled), record, plain_calls)
    if not compiled and not record:
        return Engine(functional, None, line, kernel.sampling)
    pace = functools.partial(
        Pace,
        parameters=list(adapter.parameters().values()),
        compiled=list(compiled.values()),
        record=record,
        plain_calls=plain_calls,
        sparing=runner.sparing if compiled else nullcontext,
        tell=functools.partial(_tell, events),
    )
    return Engine(functional, pace, line, kernel.sampling)


def for_pictures(
    config: Config,
    family: ModelFamily,
    denoiser: nn.Module,
    adapter: Adapter | None,
    precision: Precision,
    events: EventLog,
) -> Stay:
    """Makes the denoiser compute as it does in a run's samples; what is returned is to be within meanwhile."""
    low_rank = adapter.low_rank() if adapter else {}
    if low_rank is None:
        return nullcontext
    kernel = _attention(config, precision, events)
    functional = family.functional(denoiser, low_rank, kernel.attention)
    where = residence.residency(config, functional, precision.device)
    functional.runner, functional.prologue = Runner(residency=where), Runner(residency=where)
    return kernel.sampling


class _Kernel(NamedTuple):
    name: str
    attention: attention.Attention
    sampling: Stay


def _attention(config: Config, precision: Precision, events: EventLog) -> _Kernel:
    chosen = attention.choose(config[Speed].attention_mechanism, precision.device, precision.dtype)
    if chosen.notice:
        _tell(events, "notice", chosen.notice)
    if chosen.sampling is chosen.training:
        return _Kernel(chosen.name, chosen.training, nullcontext)
    switch = attention.Switch(chosen.training, chosen.sampling)
    return _Kernel(chosen.name, switch, switch.sampling)


def _line(kernel: str, compiled: bool, record: bool, plain_calls: int) -> str:
    if not compiled and not record:
        return f"attention {kernel}; blocks run uncompiled"
    said = "blocks are compiled" if compiled else ""
    said += " and " if compiled and record else ""
    said += "steps are recorded as a CUDA graph" if record else ""
    return f"attention {kernel}; {said}{', after a first step as written' if plain_calls else ''}"


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
    if backend == "inductor" and speed.dynamo_mode.startswith("max-autotune"):
        settings["mode"] = "max-autotune-no-cudagraphs"  # whole steps are recorded, not each block
    before = functools.partial(prepare, num_shapes, config[Memory].activation_memory_budget)
    strict = speed.dynamo_backend != "auto"
    return {
        name: Compiled(
            function,
            f"the {name.removesuffix(' again')} blocks",
            strict=strict,
            before=before,
            fullgraph=speed.dynamo_fullgraph,
            **settings,
        )
        for name, function in functional.functions.items()
    }


def _recorded(config: Config, runner: Runner, precision: Precision, events: EventLog) -> bool:
    """Whether steps become CUDA graphs. Says why not, if they were asked for."""
    backend = config[Speed].dynamo_backend
    mode = config[Speed].dynamo_mode if backend in ("auto", "inductor") else ""
    asked = backend == "cudagraphs" or mode in RECORDING
    obstacle = _obstacle(config, runner, precision)
    if asked and obstacle:
        _tell(events, "warning", f"steps are not recorded as a CUDA graph: {obstacle}")
    return not obstacle and (asked or (backend == "auto" and mode != "max-autotune-no-cudagraphs"))


def _obstacle(config: Config, runner: Runner, precision: Precision) -> str:
    """Why steps cannot be recorded; empty if they can."""
    if precision.device.type != "cuda":
        return "this needs an NVIDIA or AMD GPU"
    if not runner.capturable:
        return "weights come through buffers that the host fills"
    if residence.wanders(config):
        return "the transformer leaves the GPU during the run"
    if precision.scaler is not None:
        return "mixed_precision=fp16 scales the loss by a number that changes"
    if config[Optimizer].gradient_precision == "fp32":
        return "gradient_precision=fp32 moves gradients aside as they come"
    return ""


def _tell(events: EventLog, severity: str, message: str) -> None:
    events.emit("log", severity, message=message)
