"""When images are made."""

from __future__ import annotations

from simpletuner.types import Progress
from simpletuner.validation.options import Validation


def due(options: Validation, progress: Progress, *, last: bool = False, epoch_done: bool = False) -> bool:
    """Whether images are made after this step. `epoch_done` says that it was the last one of `progress.epoch`."""
    if options.validation_disable or last:
        return not options.validation_disable
    epochs = progress.epoch if epoch_done else progress.epoch - 1
    if progress.step < options.validate_after_step or epochs < options.validate_after_epoch:
        return False
    interval = options.validation_epoch_interval
    return progress.step % options.validation_step_interval == 0 or bool(
        epoch_done and interval and epochs % interval == 0
    )
