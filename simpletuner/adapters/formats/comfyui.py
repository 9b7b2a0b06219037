"""diffusers' names with an alpha for each layer, as ComfyUI's users know them."""

from __future__ import annotations

from simpletuner.adapters.formats.dialect import Dialect
from simpletuner.adapters.formats.diffusers import read, write

DIALECT = Dialect("comfyui", "diffusers' names with alphas", read, write, alpha=True)
