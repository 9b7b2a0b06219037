"""Changes that make a run need less memory, and which of them would make it fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simpletuner.adapters.kinds import KINDS
from simpletuner.adapters.options import Adapter
from simpletuner.config import Config
from simpletuner.data.datasets import ImageSet
from simpletuner.data.options import Data
from simpletuner.memory.options import Memory, Offload
from simpletuner.models import families
from simpletuner.models.options import Model
from simpletuner.optim.options import Optimizer
from simpletuner.quantization.kinds import KINDS as QUANTISED
from simpletuner.rules import packages
from simpletuner.surfaces import shown
from simpletuner.training.options import Speed, Training
from simpletuner.validation import sizes
from simpletuner.validation.options import Validation

BASES = ("int8-quanto", "nf4-bnb")  # of no loss of quality, and the smallest that trains well


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


def changes(
    config: Config, images: Sequence[ImageSet], validation: bool = False, swap: int | None = None
) -> list[Change]:
    """What would help and does not hold yet; what costs no quality comes first.

    validation: the samples need more than there is, so that less of them helps. swap: how many blocks have to wait in
    RAM for the rest to fit; where nobody knows, a quarter more than now.
    """
    memory, batch = config[Memory], config[Training].train_batch_size
    rank = config[Adapter].lora_rank
    wide = memory.base_dtype(config[Speed].mixed_precision) == "fp32"
    smaller_optimizer = config[Speed].mixed_precision == "bf16" and config[Optimizer].optimizer != "adamw_bf16"
    found = [
        (not memory.gradient_checkpointing, Change({"gradient_checkpointing": True})),
        (memory.gradient_checkpointing_interval > 1, Change({"gradient_checkpointing_interval": 1})),
        (_may_swap(config) and swap != 0, Change({"blocks_to_swap": swap or _more_swapped(config)})),
        (batch > 1, Change({"train_batch_size": 1, "gradient_accumulation_steps": batch})),
        (smaller_optimizer and not wide, Change({"optimizer": "adamw_bf16"})),
        (smaller_optimizer and wide, Change({"optimizer": "adamw_bf16", "base_model_precision": "bf16"}, new_run=True)),
        *((True, Change({"base_model_precision": kind}, new_run=True)) for kind in _smaller_bases(config)),
        *((True, change) for change in _smaller_samples(config) if validation),
        (rank > 1 and config.applies("lora_rank"), Change({"lora_rank": rank // 2}, new_run=True)),
        *((True, change) for change in _lower_resolution(config, images)),
        (validation, Change({"validation_disable": True})),
    ]
    return [change for helps, change in found if helps]


def _may_swap(config: Config) -> bool:
    """Whether blocks of the transformer can wait in RAM that do not yet."""
    offload = config[Offload]
    other = offload.enable_group_offload or offload.enable_model_cpu_offload
    return KINDS[config[Model].model_type].base_stays and not other and _more_swapped(config) > offload.blocks_to_swap


def _more_swapped(config: Config) -> int:
    family = families()[config[Model].model_family]
    blocks = family.shapes(config[Model]).num_blocks
    return min(config[Offload].blocks_to_swap + max(1, blocks // 4), blocks - 1)


def _smaller_bases(config: Config) -> list[str]:
    """Kinds of quantised weights with fewer bytes, whose library is here; the largest first."""
    memory = config[Memory]
    if not KINDS[config[Model].model_type].base_stays:
        return []
    now = QUANTISED[memory.base_model_precision].num_bytes if memory.quantised else float("inf")
    here = [
        kind
        for kind in BASES
        if kind not in packages.PRECISIONS or packages.installed(packages.PRECISIONS[kind].module)
    ]
    return [kind for kind in here if QUANTISED[kind].num_bytes < now]


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
