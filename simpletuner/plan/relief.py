"""Changes that make a run need less memory, and which of them would make it fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from simpletuner.adapters.options import Adapter
from simpletuner.config import Config
from simpletuner.data.options import Data
from simpletuner.memory.options import Memory
from simpletuner.optim.options import Optimizer
from simpletuner.surfaces import shown
from simpletuner.training.options import Speed, Training


@dataclass(frozen=True)
class Change:
    """Values of some options. `new_run`: a run that has begun cannot go on with them."""

    values: Mapping[str, Any]
    new_run: bool = False

    def __str__(self) -> str:
        line = ", ".join(f"{key}={shown(value)}" for key, value in self.values.items())
        return line + (", in a new output_dir" if self.new_run else "")

    def applied(self, config: Config) -> Config:
        """The configuration with these values, for estimates: nothing is checked."""
        groups = dict(config.groups)
        for name, group in groups.items():
            own = {key: value for key, value in self.values.items() if key in type(group).model_fields}
            groups[name] = group.model_copy(update=own)
        return replace(config, groups=groups)


def changes(config: Config) -> list[Change]:
    """What would help and does not hold yet; what costs no quality comes first."""
    memory, data, batch = config[Memory], config[Data], config[Training].train_batch_size
    rank = config[Adapter].lora_rank
    wide = memory.base_dtype(config[Speed].mixed_precision) == "fp32"
    smaller_optimizer = config[Speed].mixed_precision == "bf16" and config[Optimizer].optimizer != "adamw_bf16"
    found = [
        (not memory.gradient_checkpointing, Change({"gradient_checkpointing": True})),
        (memory.gradient_checkpointing_interval > 1, Change({"gradient_checkpointing_interval": 1})),
        (batch > 1, Change({"train_batch_size": 1, "gradient_accumulation_steps": batch})),
        (smaller_optimizer and not wide, Change({"optimizer": "adamw_bf16"})),
        (smaller_optimizer and wide, Change({"optimizer": "adamw_bf16", "base_model_precision": "bf16"}, new_run=True)),
        (rank > 1 and config.applies("lora_rank"), Change({"lora_rank": rank // 2}, new_run=True)),
        (data.resolution_type != "area", Change({"resolution": data.resolution / 2}, new_run=True)),
    ]
    return [change for helps, change in found if helps]
