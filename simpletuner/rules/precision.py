"""Number formats: what the base is kept in, what the computation runs in, and what may be trained so."""

from __future__ import annotations

from simpletuner.adapters.kinds import KINDS
from simpletuner.config import Config
from simpletuner.errors import Problem
from simpletuner.memory.options import Memory
from simpletuner.models.options import Model
from simpletuner.optim.options import Optimizer
from simpletuner.quantization.kinds import KINDS as KINDS_OF_WEIGHTS
from simpletuner.rules.findings import error, notice
from simpletuner.training.options import Speed

BASE = "base_model_precision"
BF16_ONLY = {"adamw_bf16"}
COMPENSATES = "optimi-"  # beginning of those that keep beside bf16 weights what rounding cuts off
FP16_BASE = (BASE, "fp16")  # frozen weights in fp16 do not touch the optimizer


def trained_weights_are_unquantised(config: Config) -> Problem | None:
    kind, memory = config[Model].model_type, config[Memory]
    if memory.quantised and not KINDS[kind].base_stays:
        message = f"model_type={kind} trains the base itself, and {memory.base_model_precision} cannot be trained"
        return error(message, "model_type", BASE, fix=f"model_type=lora, or {BASE}=no_change")
    return None


def pipeline_can_quantise(config: Config) -> Problem | None:
    memory = config[Memory]
    base = memory.base_model_precision
    if memory.quantize_via == "pipeline" and memory.quantised and not KINDS_OF_WEIGHTS[base].diffusers:
        message = f"quantize_via=pipeline leaves quantising to diffusers, whose {base} cannot be taken over"
        if KINDS_OF_WEIGHTS[base].compute:
            message = f"quantize_via=pipeline leaves quantising to diffusers, which cannot make {base}"
        works = ", ".join(name for name, kind in KINDS_OF_WEIGHTS.items() if kind.diffusers)
        return error(message, "quantize_via", BASE, fix=f"quantize_via=auto; pipeline makes {works}")
    return None


def base_matches_computation(config: Config) -> Problem | None:
    if config[Memory].base_model_precision == "fp16" and config[Speed].mixed_precision == "bf16":
        return notice("the base is kept in fp16 while the computation is in bf16", BASE, "mixed_precision")
    return None


def bf16_optimizer(config: Config) -> Problem | None:
    optimizer, memory = config[Optimizer].optimizer, config[Memory]
    dtypes = {
        "mixed_precision": config[Speed].mixed_precision,
        BASE: "no_change" if memory.quantised else memory.base_model_precision,  # packed weights are not trained
        "base_model_default_dtype": memory.base_model_default_dtype,
    }
    other = [key for key, dtype in dtypes.items() if dtype not in ("bf16", "no_change") and (key, dtype) != FP16_BASE]
    if optimizer in BF16_ONLY and other:
        said = " and ".join(f"{key} is {dtypes[key]}" for key in other)
        message = f"{optimizer} trains bf16 weights, and {said}"
        return error(message, "optimizer", *other, fix="optimizer=torch-adamw")
    return None


def updates_are_kept(config: Config) -> Problem | None:
    """Weights that are trained themselves are fp32, or bf16 with an optimizer that rounds by chance or compensates."""
    optimizer, computed = config[Optimizer].optimizer, config[Speed].mixed_precision
    memory = config[Memory]
    stored = memory.base_dtype(computed)
    kept = stored == "fp32" or (stored == "bf16" and (optimizer in BF16_ONLY or optimizer.startswith(COMPENSATES)))
    if KINDS[config[Model].model_type].base_stays or memory.quantised or kept:
        return None
    message = f"model_type=full would train weights in {stored}, where {optimizer} rounds small updates away"
    fix = f"{BASE}=fp32, with mixed_precision as it is"
    if stored == computed == "bf16":
        fix += ", or optimizer=adamw_bf16 for half the memory"
    if optimizer in BF16_ONLY:
        fix = f"{BASE}=bf16"
    return error(message, "model_type", "optimizer", BASE, "mixed_precision", fix=fix)
