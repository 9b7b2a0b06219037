"""When validation images are made, from which prompts, how they are sampled, and what is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from simpletuner.schema import GIVEN, Basic, Expert, Former, Ge, Group, Gt, Le, Meaning, Unit, When

WITH_ADAPTER = When(validation_adapter_path=GIVEN)


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

    validation_cfg_batched: Annotated[bool, Expert] = False
    """Runs both passes of real guidance as one doubled batch: quicker than two, and a fifth more memory."""

    validation_no_cfg_until_timestep: Annotated[int, Ge(0), Unit("steps"), Expert] = 2
    """The first n sampling steps run without real guidance: quicker, often better composed; 0 uses it at once."""

    validation_num_inference_steps: Annotated[int | None, Ge(1), Unit("steps"), Basic] = None
    """Sampling steps; more take longer, Flux gains little above 20; unset means 20, schnell 4, de-distilled 28."""

    validation_seed: Annotated[int | None, Ge(0)] = None
    """Number of the start noise, the same at every validation so that images compare; unset means the run's seed."""

    validation_randomize: Annotated[bool, Expert] = False
    """New noise at every validation: more variety, but steps can no longer be compared one to one."""

    validation_seed_source: Annotated[
        Literal["cpu", "gpu"],
        Expert,
        Meaning({"cpu": "the same noise on every machine", "gpu": "the noise of this kind of GPU"}),
    ] = "cpu"
    """Where the start noise is drawn."""

    validation_preview: bool = False
    """Streams half-made images through a tiny decoder to the web page, webhooks and the event log; a little slower."""

    validation_preview_steps: Annotated[int, Ge(1), Unit("steps"), When(validation_preview=True)] = 1
    """A preview every n sampling steps, and always the last; 3 or 5 costs less."""

    validation_image_format: Annotated[
        Literal["png", "webp", "jpeg"],
        Expert,
        Meaning({"png": "exact, large", "webp": "small, lossy", "jpeg": "small, lossy, opens everywhere"}),
    ] = "png"
    """File type of the images; the settings of each image are stored in the file."""

    validation_image_quality: Annotated[int, Ge(1), Le(100), Expert, When(validation_image_format=("webp", "jpeg"))] = (
        90
    )
    """Quality of webp and jpeg; lower makes smaller files with visible artefacts."""

    validation_multigpu: Annotated[
        Literal["batch-parallel", "single-gpu"],
        Expert,
        Meaning({"batch-parallel": "shares the prompts between the GPUs", "single-gpu": "the others wait"}),
    ] = "batch-parallel"
    """Which GPUs make the images."""

    validation_lycoris_strength: Annotated[float, Ge(0), Expert, When(lora_type="lycoris")] = 1.0
    """Weight of a LyCORIS adapter in validation; 1 shows it as it was trained."""

    ema_validation: Annotated[
        Literal["comparison", "ema_only", "none"],
        Expert,
        When(use_ema=True),
        Meaning(
            {
                "comparison": "images with and without the average",
                "ema_only": "only with the average",
                "none": "only with the trained weights",
            }
        ),
    ] = "comparison"
    """Which weights make the images where a running average is kept; both take twice the time."""

    validation_input: Annotated[dict[str, Any] | list[Any] | str | None, Expert] = None
    """Input images with their prompts, as an object or a file, for models that edit images."""

    validation_using_datasets: Annotated[bool, Expert] = False
    """Takes input images from the datasets; kontext does so anyway."""

    validation_stitch_input_location: Annotated[Literal["left", "right"], Expert] = "left"
    """On which side of the result the input image is shown."""

    validation_adapter_path: Annotated[str | None, Expert] = None
    """Another adapter that takes part in validation, as a file or a hub name; shows how well the two get along."""

    validation_adapter_name: Annotated[str | None, Expert, WITH_ADAPTER] = None
    """Label of that adapter in file names and contact sheets."""

    validation_adapter_strength: Annotated[float, Ge(0), Expert, WITH_ADAPTER] = 1.0
    """Weight of that adapter."""

    validation_adapter_mode: Annotated[
        Literal["adapter_only", "comparison", "none"],
        Expert,
        WITH_ADAPTER,
        Meaning(
            {"adapter_only": "images with it", "comparison": "images with and without it", "none": "images without it"}
        ),
    ] = "adapter_only"
    """How that adapter takes part; a comparison takes twice the time."""

    validation_adapter_config: Annotated[dict[str, Any] | list[Any] | str | None, Expert] = None
    """Several combinations of adapters, as an object or a file, in place of validation_adapter_path."""


class Evaluation(Group, title="Evaluation"):
    evaluation_type: Annotated[
        Literal["none", "clip"],
        Meaning({"none": "no score", "clip": "how well the images match their prompts, by CLIP"}),
    ] = "none"
    """Score of the validation images; loads another model after each validation."""

    pretrained_evaluation_model_name_or_path: Annotated[str, Expert, When(evaluation_type="clip")] = (
        "openai/clip-vit-large-patch14-336"
    )
    """The model that scores; scores of different models do not compare."""

    eval_steps_interval: Annotated[int | None, Ge(1), Unit("steps")] = None
    """Loss on the held-out images every n steps; needs a dataset of type eval. Unset means at every validation."""

    eval_epoch_interval: Annotated[float | None, Gt(0), Unit("epochs")] = None
    """The same every n epochs, which may be a fraction."""

    eval_timesteps: Annotated[int, Ge(1), Expert] = 28
    """Fixed times at which each held-out image is measured; more is steadier and slower."""

    num_eval_images: Annotated[int, Ge(1)] = 4
    """Images of each held-out set that are measured; more is steadier and slower."""

    eval_dataset_id: Annotated[list[str] | None, Expert] = None
    """Which held-out sets are measured, one or a list; unset means all."""

    eval_dataset_pooling: Annotated[bool, Expert] = False
    """One curve for all held-out sets instead of one for each."""

    eval_loss_disable: Annotated[bool, Expert] = False
    """Keeps the held-out sets out of training and measures nothing, to save the time."""
