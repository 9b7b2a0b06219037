"""Every part's option groups, and with them every option there is."""

from __future__ import annotations

from simpletuner import retired, schema
from simpletuner.adapters.options import Adapter
from simpletuner.data.options import Data
from simpletuner.diffusion.options import Objective, Rollout
from simpletuner.memory.options import Memory, Offload
from simpletuner.models import families
from simpletuner.models.options import Model, ModelMemory
from simpletuner.optim.options import Optimizer
from simpletuner.schema import Group, Option
from simpletuner.tracking.options import Hub, Logging
from simpletuner.training.options import Distributed, Ema, Saving, Speed, Training
from simpletuner.validation.options import Evaluation, Validation

# In the order of the help's panels.
GROUPS: tuple[type[Group], ...] = (
    Model, Data, Training, Ema, Adapter, Objective,
    *(group for family in families().values() for group in family.options), Rollout, Optimizer, Memory, Offload,
    ModelMemory, Speed, Validation, Evaluation, Saving, Logging, Hub, Distributed,
)  # fmt: skip
OPTIONS: dict[str, Option] = schema.options(GROUPS)
FORMER = retired.FORMER | {former: key for key, option in OPTIONS.items() for former in option.former}
