"""What is aimed at: how times are drawn, the guidance that a model is told, and the ways of single flavours."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config import Config
from simpletuner.diffusion import options as objective
from simpletuner.diffusion.options import Objective
from simpletuner.errors import Problem
from simpletuner.models import families
from simpletuner.models.flux.options import FluxOptions
from simpletuner.models.options import Model
from simpletuner.rules.findings import error, notice

UNSHIFTED = ("flow_custom_timesteps", "flux_fast_schedule")
SHIFTS = ("flow_schedule_shift", "flow_schedule_auto_shift")
LOW, HIGH, VALUE = "flux_guidance_min", "flux_guidance_max", "flux_guidance_value"
NO_GUIDANCE_VALUE = 1.0  # of a model that is told none, the option's default


def times(config: Config) -> Iterator[Problem]:
    """At most one mode and one shift; a mode of the user's replaces that of the flavour."""
    yield from objective.settle(config[Objective], config.given)[1]


def unshifted_modes(config: Config) -> Problem | None:
    mode = objective.modes(config[Objective])
    if mode and mode[0] in UNSHIFTED and config.given.intersection(SHIFTS):
        return notice(f"{mode[0]} is not shifted: the shift has no effect", mode[0], *SHIFTS)
    return None


def guidance_range(config: Config) -> Problem | None:
    flux = config[FluxOptions]
    if flux.flux_guidance_mode == "random-range" and flux.flux_guidance_min > flux.flux_guidance_max:
        message = f"{LOW} {flux.flux_guidance_min:g} is above {HIGH} {flux.flux_guidance_max:g}"
        return error(message, LOW, HIGH, fix="swap them")
    return None


def guidance_is_taken(config: Config) -> Problem | None:
    model, value = config[Model], config[FluxOptions].flux_guidance_value
    flavour = families()[model.model_family].flavours[model.model_flavour]
    if not flavour.guidance and VALUE in config.given and value != NO_GUIDANCE_VALUE:
        message = f"{VALUE} has no effect: {flavour.name} takes no guidance value"
        return notice(message, VALUE, "model_flavour", fix=f"remove {VALUE}")
    return None


def schnell_as_it_is(config: Config) -> Iterator[Problem]:
    """schnell learns with an assistant and on a fast schedule; without them it says what usually comes out."""
    model, values = config[Model], config.values()
    if model.model_flavour != "schnell":
        return
    if model.model_type != "lora":
        message = "schnell is trained in full, without its assistant: it usually forgets how to draw in few steps"
        yield notice(message, "model_type", "model_flavour")
    elif values["disable_assistant_lora"]:
        message = "schnell is trained without its assistant: results usually blur at four steps"
        yield notice(message, "disable_assistant_lora", "model_flavour")
    if not values["flux_fast_schedule"]:
        message = "schnell is trained off its fast schedule, on times that it never meets: results usually blur"
        yield notice(message, "flux_fast_schedule", "model_flavour")


def references_as_elsewhere(config: Config) -> Problem | None:
    time = config[FluxOptions].kontext_reference_time
    if config[Model].model_flavour == "kontext" and time != "same":
        message = f"kontext_reference_time={time}: other tools tell reference images the time of the image"
        return notice(message, "kontext_reference_time", fix="kontext_reference_time=same, unless you sample here only")
    return None
