"""What may not be combined: one small function per rule of config.md section 8, each naming its keys.

A rule gets the whole configuration and says nothing, or what is wrong. All rules run; all findings are shown at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from simpletuner.adapters.kinds import KINDS, Kind
from simpletuner.config import OPTIONS, Config
from simpletuner.data.datasets import LEAST_EDGE_CELLS, MAX_MEGAPIXELS, ImageSet
from simpletuner.data.options import Data
from simpletuner.diffusion import options as objective
from simpletuner.diffusion.options import Objective
from simpletuner.errors import Problem
from simpletuner.memory.options import Memory
from simpletuner.models import families
from simpletuner.models.flux.options import FluxOptions
from simpletuner.models.options import Model
from simpletuner.optim.options import FALLING, Optimizer
from simpletuner.training.options import Speed, Training
from simpletuner.types import Prompt
from simpletuner.validation import sizes
from simpletuner.validation.options import Validation

BF16_ONLY = {"adamw_bf16"}
FP16_BASE = ("base_model_precision", "fp16")  # frozen weights in fp16 do not touch the optimizer


def error(message: str, *keys: str, fix: str = "") -> Problem:
    return Problem(message, keys=keys, fix=fix)


def notice(message: str, *keys: str, fix: str = "") -> Problem:
    return Problem(message, severity="notice", keys=keys, fix=fix)


def kind(config: Config) -> Kind:
    return KINDS[config[Model].model_type]


def one_length(config: Config) -> Problem | None:
    training = config[Training]
    keys = ("max_train_steps", "num_train_epochs")
    if training.max_train_steps and training.num_train_epochs:
        return error("max_train_steps and num_train_epochs are both set", *keys, fix="keep one, and set the other to 0")
    if not training.max_train_steps and not training.num_train_epochs:
        return error("nothing says how long to train", *keys, fix="set max_train_steps, for example 1000")
    return None


def sizes_together(config: Config) -> Problem | None:
    data = config[Data]
    keys = ("maximum_image_size", "target_downsample_size")
    if bool(data.maximum_image_size) != bool(data.target_downsample_size):
        return error("maximum_image_size and target_downsample_size belong together", *keys, fix="set both or neither")
    return None


def sizes_in_order(config: Config) -> Problem | None:
    data = config[Data]
    low, high, target = data.minimum_image_size, data.maximum_image_size, data.target_downsample_size
    if low and high and low > high:
        return error(
            f"minimum_image_size {low:g} is above maximum_image_size {high:g}: no image could pass",
            "minimum_image_size",
            "maximum_image_size",
        )
    if high and target and target > high:
        return error(
            f"target_downsample_size {target:g} is above maximum_image_size {high:g}: images would grow",
            "target_downsample_size",
            "maximum_image_size",
        )
    return None


def resolution_has_its_unit(config: Config) -> Problem | None:
    data = config[Data]
    flavour = families()[config[Model].model_family].flavours[config[Model].model_flavour]
    smallest = LEAST_EDGE_CELLS * flavour.alignment
    if data.resolution_type == "area" and data.resolution > MAX_MEGAPIXELS:
        return error(
            f"resolution {data.resolution:g} with resolution_type area means megapixels",
            "resolution",
            "resolution_type",
            fix='did you mean "resolution_type": "pixel_area"?',
        )
    if data.resolution_type != "area" and data.resolution < smallest:
        return error(
            f"resolution {data.resolution:g} is below {smallest} pixels",
            "resolution",
            "resolution_type",
            fix='did you mean "resolution_type": "area" (megapixels)?',
        )
    return None


def dataset_file_is_there(config: Config) -> Problem | None:
    path = config[Data].data_backend_config
    if not path.is_file():
        return error(
            f"no dataset file at {path}",
            "data_backend_config",
            fix="write one: config/multidatabackend.json.example is a start",
        )
    return None


def base_matches_computation(config: Config) -> Problem | None:
    memory, speed = config[Memory], config[Speed]
    if memory.base_model_precision == "fp16" and speed.mixed_precision == "bf16":
        return notice(
            "the base is kept in fp16 while the computation is in bf16", "base_model_precision", "mixed_precision"
        )
    return None


def one_time_mode(config: Config) -> Iterator[Problem]:
    yield from objective.settle(config[Objective], config.given)[1]


def unshifted_modes(config: Config) -> Problem | None:
    chosen = config[Objective]
    mode = objective.modes(chosen)
    if (
        mode
        and mode[0] in ("flow_custom_timesteps", "flux_fast_schedule")
        and {"flow_schedule_shift", "flow_schedule_auto_shift"} & config.given
    ):
        return notice(
            f"{mode[0]} is not shifted: the shift has no effect",
            mode[0],
            "flow_schedule_shift",
            "flow_schedule_auto_shift",
        )
    return None


def guidance_range(config: Config) -> Problem | None:
    flux = config[FluxOptions]
    if flux.flux_guidance_mode == "random-range" and flux.flux_guidance_min > flux.flux_guidance_max:
        return error(
            f"flux_guidance_min {flux.flux_guidance_min:g} is above flux_guidance_max {flux.flux_guidance_max:g}",
            "flux_guidance_min",
            "flux_guidance_max",
            fix="swap them",
        )
    return None


def negative_prompt_is_used(config: Config) -> Problem | None:
    validation = config[Validation]
    if validation.validation_negative_prompt and (validation.validation_guidance_real or 1.0) <= 1.0:
        return notice(
            "the negative prompt is not used without real guidance above 1",
            "validation_negative_prompt",
            "validation_guidance_real",
        )
    return None


def validation_sizes(config: Config) -> Iterator[Problem]:
    if not config[Validation].validation_disable:
        yield from sizes.parse(config[Validation].validation_resolution, where=config.origin("validation_resolution"))[
            1
        ]


def rate_falls(config: Config) -> Problem | None:
    optimizer = config[Optimizer]
    if optimizer.lr_scheduler in FALLING and optimizer.learning_rate and optimizer.lr_end >= optimizer.learning_rate:
        return error(
            f"lr_end {optimizer.lr_end:g} is not below learning_rate {optimizer.learning_rate:g}: it would not fall",
            "lr_end",
            "learning_rate",
            "lr_scheduler",
        )
    return None


def warmup_ends(config: Config) -> Problem | None:
    steps, warmup = config[Training].max_train_steps, config[Optimizer].lr_warmup_steps
    if steps and warmup > steps:
        return error(
            f"lr_warmup_steps {warmup} is longer than the run of {steps} steps", "lr_warmup_steps", "max_train_steps"
        )
    return None


def bf16_optimizer(config: Config) -> Problem | None:
    optimizer, memory = config[Optimizer].optimizer, config[Memory]
    dtypes = {
        "mixed_precision": config[Speed].mixed_precision,
        "base_model_precision": memory.base_model_precision,
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
    stored = config[Memory].base_dtype(computed)
    if kind(config).base_stays or stored == "fp32" or (stored == "bf16" and optimizer in BF16_ONLY):
        return None
    message = f"model_type=full would train weights in {stored}, where {optimizer} rounds small updates away"
    fix = "base_model_precision=fp32, with mixed_precision as it is"
    if stored == computed == "bf16":
        fix += ", or optimizer=adamw_bf16 for half the memory"
    if optimizer in BF16_ONLY:
        fix = "base_model_precision=bf16"
    return error(message, "model_type", "optimizer", "base_model_precision", "mixed_precision", fix=fix)


def prompts_are_used(config: Config) -> Problem | None:
    if (
        "validation_prompt" in config.given
        and "user_prompt_library" in config.given
        and config[Validation].validation_disable
    ):
        return notice("prompts are set, but validation_disable is on", "validation_disable", "validation_prompt")
    return None


def conditions_hold(config: Config) -> Iterator[Problem]:
    """Options that depend on one value of another say so, unless they hold their default."""
    values = config.values()
    for key in sorted(config.given & OPTIONS.keys()):
        option = OPTIONS[key]
        if option.when and values[key] != option.default and not config.applies(key):
            yield notice(f"{key} has no effect unless {option.when}", key, option.when.key)


RULES: tuple[Callable[[Config], Problem | None | Iterator[Problem]], ...] = (
    one_length, sizes_together, sizes_in_order, resolution_has_its_unit, dataset_file_is_there,
    base_matches_computation, one_time_mode, unshifted_modes, guidance_range, negative_prompt_is_used,
    validation_sizes, rate_falls, warmup_ends, bf16_optimizer, updates_are_kept, prompts_are_used, conditions_hold,
)  # fmt: skip


# ---- rules that also look at the datasets or the prompts


def regularisation_has_a_base(config: Config, datasets: Sequence[ImageSet], _: Sequence[Prompt]) -> Iterator[Problem]:
    for dataset in datasets:
        if dataset.entry.is_regularisation_data and not kind(config).base_stays:
            message = f"dataset {dataset.id} is for regularisation, and model_type=full leaves no base model to aim at"
            fix = "disable the dataset, or train a LoRA"
            keys = ("model_type", "is_regularisation_data")
            yield Problem(message, where=dataset.where, keys=keys, fix=fix)


def strength_has_an_adapter(config: Config, _: Sequence[ImageSet], prompts: Sequence[Prompt]) -> Iterator[Problem]:
    for prompt in prompts:
        strength = prompt.adapter_strength
        if strength not in (None, 1.0) and not kind(config).base_stays:
            message = f"prompt {prompt.nickname}: adapter_strength is {strength:g}, and model_type=full has no adapter"
            yield error(message, "model_type", "user_prompt_library", fix="remove adapter_strength")


CONTENT_RULES = (regularisation_has_a_base, strength_has_an_adapter)


def check(config: Config) -> list[Problem]:
    """The findings of all rules, each with the places of its keys."""
    findings: list[Problem] = []
    for rule in RULES:
        found = rule(config)
        findings += [found] if isinstance(found, Problem) else [p for p in found or ()]
    return [_placed(config, finding) for finding in findings]


def check_contents(config: Config, datasets: Sequence[ImageSet], prompts: Sequence[Prompt]) -> list[Problem]:
    """The findings of the rules about what the dataset file and the prompt library hold."""
    return [_placed(config, finding) for rule in CONTENT_RULES for finding in rule(config, datasets, prompts)]


def _placed(config: Config, problem: Problem) -> Problem:
    places = [config.origins[key] for key in problem.keys if key in config.origins]
    return problem if problem.where or not places else replace(problem, where=" and ".join(dict.fromkeys(places)))
