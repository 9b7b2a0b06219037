"""The adapter: how it starts, what its base must be, which layers it sits on, and the recipe of another library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from simpletuner import reading
from simpletuner.adapters import targets
from simpletuner.adapters.options import Adapter
from simpletuner.config import OPTIONS, Config
from simpletuner.errors import ConfigError, Problem
from simpletuner.memory.options import Memory
from simpletuner.models import families
from simpletuner.models.options import Model
from simpletuner.rules.findings import error, notice

BASE = "base_model_precision"
LOFTQ_BASE = "nf4-bnb"
CHANGE_THE_BASE = ("pissa", "olora")
OWN_LAYERS = "peft_lora_target_modules"
PEFT_ONLY = ("flux_lora_target", "flux_lora_module_type", "lora_init_type", OWN_LAYERS)
RECIPE = "lycoris_config"
RECIPE_KEYS = ("algo", "multiplier", "linear_dim", "linear_alpha")


def peft(config: Config) -> bool:
    """Whether an adapter of PEFT's layers is trained."""
    return config[Model].model_type == "lora" and config[Adapter].lora_type == "standard"


def lycoris(config: Config) -> bool:
    return config[Model].model_type == "lora" and config[Adapter].lora_type == "lycoris"


def loftq_makes_up_for_nf4(config: Config) -> Problem | None:
    base = config[Memory].base_model_precision
    if peft(config) and config[Adapter].lora_init_type == "loftq" and base != LOFTQ_BASE:
        message = f"lora_init_type=loftq makes up for the rounding of {LOFTQ_BASE}, and {BASE} is {base}"
        return error(message, "lora_init_type", BASE, fix=f"{BASE}={LOFTQ_BASE}, or lora_init_type=default")
    return None


def changed_base_is_unquantised(config: Config) -> Problem | None:
    start, memory = config[Adapter].lora_init_type, config[Memory]
    if peft(config) and start in CHANGE_THE_BASE and memory.quantised:
        message = f"lora_init_type={start} changes base weights, and those in {memory.base_model_precision} are packed"
        return error(message, "lora_init_type", BASE, fix=f"{BASE}=no_change, or lora_init_type=default")
    return None


def dora_reads_its_base(config: Config) -> Problem | None:
    """DoRA takes the length of the base's rows, which only bitsandbytes gives back from packed weights."""
    memory = config[Memory]
    readable = not memory.quantised or memory.base_model_precision.endswith("-bnb")
    if peft(config) and config[Adapter].flux_lora_module_type == "dora" and not readable:
        message = f"flux_lora_module_type=dora does not work on a base in {memory.base_model_precision}"
        fix = f"{BASE}=nf4-bnb, int8-bnb or no_change; flux_lora_module_type=standard works on all"
        return error(message, "flux_lora_module_type", BASE, fix=fix)
    return None


def recipe_says_it(config: Config) -> Problem | None:
    """With LyCORIS the recipe names layers and start values."""
    values = config.values()
    idle = [key for key in PEFT_ONLY if key in config.given and values[key] != OPTIONS[key].default]
    if lycoris(config) and idle:
        said = " and ".join((", ".join(idle[:-1]), idle[-1]) if idle[1:] else idle)
        message = f"{said} {'have' if idle[1:] else 'has'} no effect with lora_type=lycoris"
        return notice(message, *idle, "lora_type", fix=f"write it in {RECIPE}")
    return None


def recipe_is_complete(config: Config) -> Iterator[Problem]:
    if not lycoris(config):
        return
    recipe, problems = _recipe(config[Adapter].lycoris_config)
    yield from problems
    if recipe is None:
        return
    missing = [key for key in RECIPE_KEYS if key not in recipe]
    if recipe.get("full_matrix") and "linear_dim" in missing:  # the rank of a full matrix is its size
        missing.remove("linear_dim")
    if missing:
        example = '"algo": "lokr", "multiplier": 1.0, "linear_dim": 10000, "linear_alpha": 1'
        yield error(f"{RECIPE} lacks {', '.join(missing)}", RECIPE, fix=f"for example {example}")


def _recipe(value: Mapping[str, Any] | str | None) -> tuple[Mapping[str, Any] | None, list[Problem]]:
    """The recipe, or None where there is none: then the program's own is used."""
    if value is None or isinstance(value, Mapping):
        return value, []
    path = Path(value)
    if path.absolute() != Path(OPTIONS[RECIPE].default).absolute():  # the reader opens every other file
        return None, [error(f"{RECIPE}: {value} is neither an object nor a file", RECIPE, fix="write the object")]
    if not path.is_file():
        return None, []
    document = reading.read(path)
    if document.failed or isinstance(document.value, dict):
        return document.value, document.problems
    wrong = Problem(f"{RECIPE}: expected an object", where=document.where(), keys=(RECIPE,), fix="wrap it in { }")
    return None, [*document.problems, wrong]


def targets_exist(config: Config) -> Iterator[Problem]:
    """The names of the adapter's layers against those of the model, as far as its sizes are known on this machine."""
    if not peft(config):
        return
    model, adapter = config[Model], config[Adapter]
    family = families()[model.model_family]
    try:
        names = family.targets(adapter.flux_lora_target, adapter.peft_lora_target_modules)
        targets.find(family.shapes(model).layers, names)
    except ConfigError as wrong:
        yield from (replace(problem, keys=problem.keys or (OWN_LAYERS,)) for problem in wrong.problems)
