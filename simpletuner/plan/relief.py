"""Changes that make a run need less memory, and which of them would make it fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simpletuner.adapters.options import Adapter
from simpletuner.config import Config
from simpletuner.data.datasets import ImageSet
from simpletuner.data.options import Data
from simpletuner.memory.options import Memory
from simpletuner.optim.options import Optimizer
from simpletuner.surfaces import shown
from simpletuner.training.options import Speed, Training
from simpletuner.validation import sizes
from simpletuner.validation.options import Validation


@dataclass(frozen=True)
class Change:
    """Values of some options. `new_run`: a run that has begun cannot go on with them."""

    values: Mapping[str, Any]
    new_run: bool = False
    resolutions: Mapping[str, float] = field(default_factory=dict)  # of the datasets that set their own, by id
    scale: float = 1.0  # of the edges of what is trained on

    def __str__(self) -> str:
        parts = [f"{key}={shown(value)}" for key, value in self.values.items()]
        parts += [f'"resolution": {value:g} of dataset {id}' for id, value in self.resolutions.items()]
        return ", ".join(parts) + (", in a new output_dir" if self.new_run else "")

    def applied(self, config: Config) -> Config:
        """The configuration with these values, for estimates: nothing is checked."""
        return config.changed(**self.values)


def changes(config: Config, images: Sequence[ImageSet], validation: bool = False) -> list[Change]:
    """What would help and does not hold yet; what costs no quality comes first.

    validation: the samples need more than there is, so that less of them helps.
    """
    memory, batch = config[Memory], config[Training].train_batch_size
    rank = config[Adapter].lora_rank
    wide = memory.base_dtype(config[Speed].mixed_precision) == "fp32"
    smaller_optimizer = config[Speed].mixed_precision == "bf16" and config[Optimizer].optimizer != "adamw_bf16"
    found = [
        (not memory.gradient_checkpointing, Change({"gradient_checkpointing": True})),
        (memory.gradient_checkpointing_interval > 1, Change({"gradient_checkpointing_interval": 1})),
        (batch > 1, Change({"train_batch_size": 1, "gradient_accumulation_steps": batch})),
        (smaller_optimizer and not wide, Change({"optimizer": "adamw_bf16"})),
        (smaller_optimizer and wide, Change({"optimizer": "adamw_bf16", "base_model_precision": "bf16"}, new_run=True)),
        *((True, change) for change in _smaller_samples(config) if validation),
        (rank > 1 and config.applies("lora_rank"), Change({"lora_rank": rank // 2}, new_run=True)),
        *((True, change) for change in _lower_resolution(config, images)),
        (validation, Change({"validation_disable": True})),
    ]
    return [change for helps, change in found if helps]


def _smaller_samples(config: Config) -> list[Change]:
    before, _ = sizes.parse(config[Validation].validation_resolution)
    after = tuple(dict.fromkeys(map(sizes.halved, before)))
    return [Change({"validation_resolution": ",".join(map(str, after))})] if after != before else []


def _lower_resolution(config: Config, images: Sequence[ImageSet]) -> list[Change]:
    """Half of it for all datasets at once: the option for those that follow it, and the entries of the others."""
    own = {image.id: image.entry.resolution / 2 for image in images if "resolution" in image.own}
    kinds = {image.entry.resolution_type for image in images} or {config[Data].resolution_type}
    if "area" in kinds:  # megapixels, too few to be halved again
        return []
    values = {} if images and len(own) == len(images) else {"resolution": config[Data].resolution / 2}
    return [Change(values, new_run=True, resolutions=own, scale=0.5)]
