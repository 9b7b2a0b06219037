"""Writes the generated files anew: docs/options.md, tests/options.txt, simpletuner/config.schema.json and the scripts
that complete commands in a shell.

python -m simpletuner.cli.surfaces
"""

from __future__ import annotations

from pathlib import Path

import simpletuner
from simpletuner import surfaces
from simpletuner.cli import completion
from simpletuner.cli.completion import scripts
from simpletuner.config import OPTIONS

ROOT = Path(simpletuner.__file__).parent.parent

if __name__ == "__main__":
    surfaces.write_all(ROOT, list(OPTIONS.values()))
    for shell in completion.SHELLS:
        completion.path(shell).write_text(getattr(scripts, shell)(), "utf-8")
