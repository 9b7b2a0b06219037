"""What happens when the disk is full."""

from __future__ import annotations

from simpletuner.config import Config
from simpletuner.errors import Problem
from simpletuner.rules.findings import error
from simpletuner.training.options import Saving


def low_disk_has_its_script(config: Config) -> Problem | None:
    saving = config[Saving]
    if saving.disk_low_action == "script" and not saving.disk_low_script:
        message = "disk_low_action=script, and disk_low_script names no program"
        return error(message, "disk_low_action", "disk_low_script", fix="name one, or disk_low_action=wait")
    return None
