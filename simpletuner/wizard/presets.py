"""Where a configuration can start: a few settings that suit a purpose or a card, or those of a packaged example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simpletuner import config as configuration
from simpletuner import reading
from simpletuner.errors import has_errors
from simpletuner.examples import EXAMPLES
from simpletuner.models import families
from simpletuner.models.options import Model

# Of an example, and not of those who start there.
OWN = ("output_dir", "data_backend_config", "user_prompt_library", "validation_prompt", "max_train_steps")
SHAPE = ("resolution", "crop", "crop_aspect", "crop_style")  # of an entry that suits other pictures as well
OF_A_SUBJECT = (
    "{phrase}",
    "{phrase} on a wooden table, soft window light",
    "{phrase} in tall grass at sunset",
    "a pencil drawing of {name}",
)
IN_A_STYLE = ("a fox in the snow, {phrase}", "a bowl of oranges, {phrase}", "a busy market street, {phrase}")


@dataclass(frozen=True)
class Preset:
    """Settings to start from. `steps`: training length for each image, and its lowest and highest total."""

    name: str
    note: str
    values: Mapping[str, Any] = field(default_factory=dict)
    entry: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[int, int, int] = (100, 500, 3000)
    phrase: str = "a photo of {}"  # around the name of the thing
    scenes: tuple[str, ...] = OF_A_SUBJECT  # sample prompts around a trigger phrase
    folder: str = ""  # of pictures that come with it


_PRESETS = (
    Preset("subject", "one person, animal or thing; a dozen pictures are enough"),
    Preset(
        "style",
        "the look of a set of pictures, on more layers",
        {"lora_rank": 32, "flux_lora_target": "all+ffs", "caption_dropout_probability": 0.05},
        steps=(40, 1000, 4000),
        phrase="{} style",
        scenes=IN_A_STYLE,
    ),
    Preset("schnell", "a subject on the Apache-2.0 model of few steps", {"model_flavour": "schnell"}),
    Preset(
        "12 GB",
        "a subject on a card of 12 GB: int4 base, 512 px",
        {"base_model_precision": "int4-quanto", "lora_rank": 8, "blocks_to_swap": 20},
        {"resolution": 512},
    ),
    Preset("24 GB", "a subject on a card of 24 GB: int8 base", {"base_model_precision": "int8-quanto"}),
    Preset(
        "80 GB",
        "a subject on a card of 80 GB: four pictures at once",
        {"train_batch_size": 4, "lora_rank": 32},
        steps=(50, 300, 2000),
    ),
)


def offered() -> dict[str, Preset]:
    """Those whose every value this version has, and the packaged examples."""
    usable = {preset.name: preset for preset in _PRESETS if _available(preset)}
    return usable | {name: _of_example(name) for name in EXAMPLES}


def _available(preset: Preset) -> bool:
    config, problems = configuration.load(None, dict(preset.values), {})
    flavour = families()[config[Model].model_family].flavours[config[Model].model_flavour]
    return not flavour.later and not has_errors(problems)


def _of_example(name: str) -> Preset:
    """The example's settings, without what belongs to its own pictures."""
    example = EXAMPLES[name]
    values = dict(reading.read(example.folder / "config.json").value)
    datasets = reading.read(example.folder / Path(values["data_backend_config"]).name).value
    entry = {key: datasets[0][key] for key in SHAPE if key in datasets[0]}
    steps = int(values["max_train_steps"])
    return Preset(
        name,
        f"the settings of the example {name}: {example.memory}, {example.time}",
        {key: value for key, value in values.items() if key not in (*OWN, *entry)},
        entry,
        steps=(0, steps, steps),
        phrase="{}",
        folder=datasets[0]["instance_data_dir"],
    )
