"""torch-optimi's optimizers, whose counters can be put back: they lie in the groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optimi
import torch
from torch import Tensor

MOVING = ("setup", "step", "triton", "kahan_sum", "adam_wd")  # settings that the first update fills in, and the counter


class Counted(torch.optim.Optimizer):
    """Goes before a class of torch-optimi."""

    def counts(self) -> list[dict[str, Any]]:
        groups = [{k: group[k] for k in MOVING if k in group} for group in self.param_groups]
        return [{k: int(v) if isinstance(v, Tensor) else v for k, v in group.items()} for group in groups]

    def count_from(self, counts: Sequence[Mapping[str, Any]]) -> None:
        for group, saved in zip(self.param_groups, counts, strict=True):
            group.update(saved)
            if "step" in saved:
                group["step"] = torch.tensor(saved["step"], dtype=torch.int32)


class OptimiAdam(Counted, optimi.Adam): ...


class OptimiAdamW(Counted, optimi.AdamW): ...


class OptimiStableAdamW(Counted, optimi.StableAdamW): ...


class OptimiAdan(Counted, optimi.Adan): ...


class OptimiLion(Counted, optimi.Lion): ...


class OptimiRAdam(Counted, optimi.RAdam): ...


class OptimiRanger(Counted, optimi.Ranger): ...


class OptimiSGD(Counted, optimi.SGD): ...
