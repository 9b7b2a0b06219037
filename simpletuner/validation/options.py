"""When validation images are made, from which prompts, and how they are sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from simpletuner.schema import Basic, Expert, Former, Ge, Group, Le, Meaning, Unit


class Validation(Group, title="Validation"):
    validation_disable: bool = False
    """Makes no validation images at all: not at start, not at intervals, not at the end, and none of the base model."""

    validation_step_interval: Annotated[int, Ge(1), Unit("steps"), Basic, Former("validation_steps")] = 100
    """Images every n optimizer steps; a short interval shows the moment of over-training but costs time."""

    validation_epoch_interval: Annotated[int | None, Ge(1), Unit("epochs")] = None
    """Images every n whole epochs, besides those of the step interval."""

    validate_after_step: Annotated[int, Ge(0), Unit("steps"), Expert] = 0
    """No images before this step, except at start and at the end; saves time while there is nothing to see yet."""

    validate_after_epoch: Annotated[int, Ge(0), Unit("epochs"), Expert] = 0
    """No images before this many epochs are complete, except at start and at the end."""

    validation_on_startup: bool = False
    """Images before the first step, also after a resume; shows at once whether prompts and memory are right."""

    disable_benchmark: bool = False
    """Skips the one-time images of the base model; without them later images have nothing to be compared with."""

    validation_prompt: Annotated[str | None, Basic] = None
    """The main prompt; unset means the instance prompt, else the first caption."""

    user_prompt_library: Annotated[Path | None, Basic] = None
    """A file of prompts: JSON of nickname and prompt, or a .txt with one per line; nicknames become file names."""

    validation_prompt_library: Annotated[bool, Expert] = False
    """Adds 12 built-in prompts of everyday subjects: shows drift beyond your subject, costs 12 images each time."""

    validation_negative_prompt: str = ""
    """What the images should not show; used with real guidance only, and empty works best for Flux."""

    validation_disable_unconditional: Annotated[bool, Expert] = False
    """Leaves out the image from an empty prompt, which shows what the model draws when not asked for anything."""

    num_validation_images: Annotated[int, Ge(1), Le(10)] = 1
    """Images per prompt and size, each from its own noise; more tell luck from learning and take longer."""

    validation_resolution: Annotated[str, Basic] = "1024x1024"
    """Sizes as WIDTHxHEIGHT, an edge from 128 up, megapixels below 128, or a comma list; rounded to multiples of 16."""

    validation_guidance: Annotated[float | None, Ge(0), Basic] = None
    """The model's own guidance, as you use it later; unset means 3.0, kontext 2.5, fluxbooru 3.5."""

    validation_guidance_real: Annotated[float | None, Ge(1)] = None
    """Real guidance, on above 1: better images, two passes per step; unset means off, 6.0 for de-distilled models."""

    validation_no_cfg_until_timestep: Annotated[int, Ge(0), Unit("steps"), Expert] = 2
    """The first n sampling steps run without real guidance: quicker, often better composed; 0 uses it at once."""

    validation_num_inference_steps: Annotated[int | None, Ge(1), Unit("steps"), Basic] = None
    """Sampling steps; more take longer, Flux gains little above 20; unset means 20, schnell 4, de-distilled 28."""

    validation_seed: Annotated[int | None, Ge(0)] = None
    """Number of the start noise, the same at every validation so that images compare; unset means the run's seed."""

    validation_randomize: Annotated[bool, Expert] = False
    """New noise at every validation: more variety, but steps can no longer be compared one to one."""

    validation_image_format: Annotated[
        Literal["png", "webp", "jpeg"],
        Expert,
        Meaning({"png": "exact, large", "webp": "small, lossy", "jpeg": "small, lossy, opens everywhere"}),
    ] = "png"
    """File type of the images; the settings of each image are stored in the file."""

    validation_image_quality: Annotated[int, Ge(1), Le(100), Expert] = 90
    """Quality of webp and jpeg; lower makes smaller files with visible artefacts."""
