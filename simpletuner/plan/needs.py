"""What a run needs of its data: prompts, texts to encode, steps. The run and its plan both ask here. No torch."""

from __future__ import annotations

import math

from simpletuner import check
from simpletuner.config import Config
from simpletuner.data.datasets import Datasets
from simpletuner.data.library import Library
from simpletuner.data.sampling import batches_per_epoch
from simpletuner.training.options import Training
from simpletuner.types import Prompt
from simpletuner.validation import prompts as prompt_library
from simpletuner.validation import shots, sizes
from simpletuner.validation.options import Validation
from simpletuner.validation.shots import Defaults, Shot


def prompts(config: Config, datasets: Datasets, library: Library) -> list[Prompt]:
    """The validation prompts, complete: the first caption is the last resort for the main one."""
    if config[Validation].validation_disable:
        return []
    first = next((item.sample.captions[0] for shelf in library.shelves for item in shelf.items), None)
    instance = check.instance_prompt(config, datasets)
    return prompt_library.load(config[Validation], instance_prompt=instance, first_caption=first)[0]


def texts(config: Config, library: Library, wanted: list[Prompt]) -> list[str]:
    """Every text that a run encodes, each once: captions, the empty one, and what sampling will ask for."""
    options = config[Validation]
    sampled = prompt_library.texts(wanted, options.validation_negative_prompt, Defaults.of(options).guidance_real)
    return list(dict.fromkeys([*library.captions(), *sampled]))


def pictures(config: Config, wanted: list[Prompt]) -> list[Shot]:
    """The images of one validation."""
    options = config[Validation]
    if options.validation_disable:
        return []
    resolution, _ = sizes.parse(options.validation_resolution)
    return shots.plan(wanted, resolution, options, Defaults.of(options), seed=config[Training].seed, step=0)


def updates_per_epoch(config: Config, library: Library, ranks: int = 1) -> float:
    """Optimizer steps in one pass over the data; an epoch may end within a step."""
    return batches_per_epoch(library.pools(), ranks) / config[Training].gradient_accumulation_steps


def total_steps(config: Config, library: Library, ranks: int = 1) -> int:
    """Optimizer steps of the whole run."""
    training = config[Training]
    if training.max_train_steps:
        return training.max_train_steps
    return math.ceil(updates_per_epoch(config, library, ranks) * training.num_train_epochs)
