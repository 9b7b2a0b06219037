"""Where a run writes its logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from simpletuner.schema import Expert, Group


class Logging(Group, title="Logging and webhooks"):
    logging_dir: Annotated[Path | None, Expert] = None
    """Folder of the text log; unset means logs in the output folder, so that it moves along with the run."""
