"""Options of the training objective: which noise levels are drawn, what the error is, and how inputs are disturbed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from simpletuner.errors import Problem
from simpletuner.schema import GIVEN, Expert, Ge, Group, Gt, Le, Meaning, Unit, When

# Option that switches a mode on -> the mode. Without any of them times are drawn from a sigmoid of normal numbers.
MODES = {
    "flow_custom_timesteps": "custom",
    "flux_fast_schedule": "fast",
    "flow_use_beta_schedule": "beta",
    "flow_use_uniform_schedule": "uniform",
    "flow_cubic_schedule_weights": "cubic",
    "mixflow_enabled": "mixflow",
}

BENT = When(loss_type=("huber", "smooth_l1"))
ROLLOUT = When(scheduled_sampling_max_step_offset=GIVEN)


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
    flow_cubic_schedule_weights: Annotated[list[Annotated[float, Ge(0)]] | None, Expert] = None
    """Draws times from a smooth density through these equally spaced weights, from clean to noisy."""
    mixflow_enabled: Annotated[bool, Expert] = False
    """Draws times from Beta(1, 2): more detail, less noise."""
    flow_custom_timesteps: Annotated[list[float] | None, Expert] = None
    """Trains only these times, without shift; all of them at most 1 means sigmas, else 0 to 1000."""
    flow_timesteps_mode: Annotated[
        Literal["fixed-list", "round-robin"],
        Expert,
        When(flow_custom_timesteps=GIVEN),
        Meaning({"fixed-list": "draws from the list", "round-robin": "goes round it, also across a resume"}),
    ] = "fixed-list"
    """How flow_custom_timesteps is used."""
    flux_fast_schedule: bool = False
    """Trains mostly at full noise: 1.0 in seven of ten draws, else 0.75, 0.5 or 0.25. For few-step models."""
    loss_type: Annotated[
        Literal["l2", "huber", "smooth_l1"],
        Expert,
        Meaning(
            {"l2": "the squared error", "huber": "linear beyond huber_c", "smooth_l1": "the same, steeper near zero"}
        ),
    ] = "l2"
    """How an error counts; huber and smooth_l1 care less about outliers, and learn slower from large errors."""
    huber_schedule: Annotated[
        Literal["snr", "exponential", "constant"],
        Expert,
        BENT,
        Meaning(
            {
                "snr": "the bend follows the signal-to-noise ratio",
                "exponential": "the bend shrinks exponentially with the noise",
                "constant": "the bend stays where it is",
            }
        ),
    ] = "snr"
    """How the bend of the loss moves with the noise."""
    huber_c: Annotated[float, Gt(0), Expert, BENT] = 0.1
    """Where the bend lies; smaller ignores outliers more."""
    masked_loss_probability: Annotated[float, Ge(0), Le(1)] = 1.0
    """Share of samples that use their segmentation mask; less lets some background in. Soft masks always apply."""
    masked_loss_normalise: Annotated[bool, Expert] = False
    """Divides by the masked area, so that a small mask counts as much as a large one, and is noisier."""
    offset_noise: Annotated[bool, Expert] = False
    """Adds one constant per channel to the noise of some samples; reaches very dark and bright images."""
    noise_offset: Annotated[float, Ge(0), Le(1), Expert, When(offset_noise=True)] = 0.1
    """Size of that constant; more widens contrast and may tint the results."""
    noise_offset_probability: Annotated[float, Ge(0), Le(1), Expert, When(offset_noise=True)] = 0.25
    """Share of samples whose noise gets the constant."""
    input_perturbation: Annotated[float, Ge(0), Le(1), Expert] = 0.0
    """Extra noise on the model's input and not on its target; regularises small sets, and blurs if it is high."""
    input_perturbation_steps: Annotated[int, Ge(0), Unit("steps"), Expert, When(input_perturbation=GIVEN)] = 0
    """The extra noise fades out over this many steps; 0 keeps it."""
    tread_config: dict[str, Any] | str | None = None
    """Token routing: routes with selection_ratio (share of image tokens dropped), start_layer_idx and end_layer_idx. Faster at large sizes; the loss starts higher and soon falls."""  # noqa: E501


class Rollout(Group, title="Objective"):
    scheduled_sampling_max_step_offset: Annotated[int, Ge(0), Unit("steps"), Expert] = 0
    """Above 0, some inputs are made by the model itself from so many steps earlier: steadier, for extra passes."""
    scheduled_sampling_strategy: Annotated[
        Literal["uniform", "biased_early", "biased_late"],
        Expert,
        ROLLOUT,
        Meaning(
            {
                "uniform": "every offset equally often",
                "biased_early": "noisy starts more often",
                "biased_late": "clean starts more often",
            }
        ),
    ] = "uniform"
    """How the offset is drawn."""
    scheduled_sampling_probability: Annotated[float, Ge(0), Le(1), Expert, ROLLOUT] = 0.0
    """Chance that a sample is rolled out, where there is no ramp; each one costs extra passes."""
    scheduled_sampling_prob_start: Annotated[float, Ge(0), Le(1), Expert, ROLLOUT] = 0.0
    """Chance at the start of the ramp."""
    scheduled_sampling_prob_end: Annotated[float, Ge(0), Le(1), Expert, ROLLOUT] = 0.5
    """Chance at the end of the ramp, and from there on."""
    scheduled_sampling_ramp_steps: Annotated[int, Ge(0), Unit("steps"), Expert, ROLLOUT] = 0
    """Length of the ramp; 0 means none, and scheduled_sampling_probability counts."""
    scheduled_sampling_start_step: Annotated[int, Ge(0), Unit("steps"), Expert, ROLLOUT] = 0
    """Optimizer step at which the ramp begins; the model should know something by then."""
    scheduled_sampling_ramp_shape: Annotated[
        Literal["linear", "cosine"],
        Expert,
        ROLLOUT,
        Meaning({"linear": "a straight line", "cosine": "soft at both ends"}),
    ] = "linear"
    """Form of the ramp."""
    scheduled_sampling_sampler: Annotated[
        Literal["unipc", "euler", "heun"],
        Expert,
        ROLLOUT,
        Meaning(
            {
                "unipc": "second order from one pass a step",
                "euler": "first order, one pass a step",
                "heun": "second order, two passes a step",
            }
        ),
    ] = "unipc"
    """Solver of the rollout."""
    scheduled_sampling_grid: Annotated[int, Ge(1), Unit("steps"), Expert, ROLLOUT] = 1000
    """Steps from noise to image that the rollout imitates; 20 to 50 is like real inference, 1000 the gentlest."""
    scheduled_sampling_target: Annotated[
        Literal["rectified", "noise"],
        Expert,
        ROLLOUT,
        Meaning({"rectified": "straight at the image from where the rollout ended", "noise": "the usual target"}),
    ] = "rectified"
    """What a sample that was rolled out aims at."""
    scheduled_sampling_reflexflow: Annotated[
        Literal["auto", "true", "false"],
        Expert,
        ROLLOUT,
        Meaning({"auto": "on whenever rollout is", "true": "on", "false": "off"}),
    ] = "auto"
    """Weights the loss against the drift of the rollout; more robust, at the price of comparable loss values."""
    scheduled_sampling_reflexflow_alpha: Annotated[float, Ge(0), Expert, ROLLOUT] = 1.0
    """Weight by exposure: how much a sample's drift raises its share of the loss."""
    scheduled_sampling_reflexflow_beta1: Annotated[float, Ge(0), Expert, ROLLOUT] = 10.0
    """Weight of the direction of the prediction against its size."""
    scheduled_sampling_reflexflow_beta2: Annotated[float, Ge(0), Expert, ROLLOUT] = 1.0
    """Weight of the reweighted loss in the sum."""


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
