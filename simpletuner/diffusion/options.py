"""Options of the training objective: which noise levels are drawn."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from simpletuner.errors import Problem
from simpletuner.schema import Expert, Ge, Group, Gt, Meaning, When

# Option that switches a mode on -> the mode. Without any of them times are drawn from a sigmoid of normal numbers.
MODES = {
    "flow_custom_timesteps": "custom",
    "flux_fast_schedule": "fast",
    "flow_use_beta_schedule": "beta",
    "flow_use_uniform_schedule": "uniform",
    "mixflow_enabled": "mixflow",
}


class Objective(Group, title="Objective"):
    flow_schedule_shift: Annotated[float, Ge(0)] | None = None
    """Moves training towards noisy times (composition, > 1) or clean times (detail, < 1); 1.0 is a mild start, 4.0 changes layout and colour. A value turns auto-shift off; 0 means no shift."""  # noqa: E501
    flow_schedule_auto_shift: bool | None = None
    """Shift grows with image size: about 1.88 at 512x512, 3.16 at 1024x1024; stable. On unless a shift is given."""
    flow_sigmoid_scale: Annotated[float, Gt(0), Expert] = 1.0
    """Spread of the default bell-shaped draw of times; larger reaches the ends more often."""
    flow_use_uniform_schedule: Annotated[bool, Expert] = False
    """Draws all times equally often."""
    flow_use_beta_schedule: Annotated[bool, Expert] = False
    """Draws times from a Beta density."""
    flow_beta_schedule_alpha: Annotated[float, Gt(0), Expert, When(flow_use_beta_schedule=True)] = 2.0
    """First shape parameter of the Beta density; larger moves draws towards noise."""
    flow_beta_schedule_beta: Annotated[float, Gt(0), Expert, When(flow_use_beta_schedule=True)] = 2.0
    """Second shape parameter of the Beta density; larger moves draws towards the clean image."""
    mixflow_enabled: Annotated[bool, Expert] = False
    """Draws times from Beta(1, 2): more detail, less noise."""
    flow_custom_timesteps: Annotated[list[float] | None, Expert] = None
    """Trains only these times, without shift; all of them at most 1 means sigmas, else 0 to 1000."""
    flow_timesteps_mode: Annotated[
        Literal["fixed-list", "round-robin"],
        Expert,
        Meaning({"fixed-list": "draws from the list", "round-robin": "goes round it, also across a resume"}),
    ] = "fixed-list"
    """How flow_custom_timesteps is used."""
    flux_fast_schedule: bool = False
    """Trains mostly at full noise: 1.0 in seven of ten draws, else 0.75, 0.5 or 0.25. For few-step models."""


def modes(objective: Objective) -> list[str]:
    """The options that switch a mode on, in the order of the table."""
    return [key for key in MODES if getattr(objective, key)]


def settle(objective: Objective, given: Collection[str]) -> tuple[Objective, list[Problem]]:
    """The objective with conflicts resolved, and what to tell the user. `given`: the keys that the user set.

    A mode of the user's replaces the fast schedule of a few-step flavour; two modes of the user's are an error.
    """
    problems = []
    on = modes(objective)
    if len(on) > 1 and "flux_fast_schedule" in on and "flux_fast_schedule" not in given:
        on.remove("flux_fast_schedule")
        objective = objective.model_copy(update={"flux_fast_schedule": False})
        problems.append(Problem(f"{on[0]} replaces this flavour's fast schedule", severity="notice", keys=(on[0],)))
    if len(on) > 1:
        problems.append(
            Problem(
                f"{' and '.join(on)} both choose how times are drawn", keys=tuple(on), fix=f"keep one, such as {on[0]}"
            )
        )
    times = objective.flow_custom_timesteps or []
    if any(not 0 <= time <= 1000 for time in times):
        problems.append(
            Problem(
                "flow_custom_timesteps holds a time outside 0 to 1000",
                keys=("flow_custom_timesteps",),
                fix="give sigmas (0 to 1) or timesteps (0 to 1000)",
            )
        )
    if objective.flow_schedule_shift is not None and objective.flow_schedule_auto_shift:
        message = f"flow_schedule_shift {objective.flow_schedule_shift:g} is used and flow_schedule_auto_shift is off"
        problems.append(
            Problem(
                message, severity="notice", keys=("flow_schedule_shift", "flow_schedule_auto_shift"), fix="give one"
            )
        )
    return objective, problems
