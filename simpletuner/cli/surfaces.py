"""Writes the generated files anew: docs/options.md, tests/options.txt and simpletuner/config.schema.json.

python -m simpletuner.cli.surfaces
"""

from __future__ import annotations

from pathlib import Path

import simpletuner
from simpletuner import surfaces
from simpletuner.config import OPTIONS

ROOT = Path(simpletuner.__file__).parent.parent

if __name__ == "__main__":
    surfaces.write_all(ROOT, list(OPTIONS.values()))
