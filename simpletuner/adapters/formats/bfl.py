"""The original model's names, `diffusion_model.<layer>.lora_down.weight`, and an alpha for each layer.

Written with `lora_down` and `lora_up`: diffusers takes a file with `lora_A` under this prefix for its own and finds no
layer in it, without an error.
"""

from __future__ import annotations

from simpletuner.adapters.formats.dialect import Dialect, Key, ending
from simpletuner.adapters.names import modules, names

PREFIXES = ("diffusion_model.", "base_model.model.")  # the second is fal's


def read(key: str) -> Key | None:
    start, role = ending(key)
    prefix = next((prefix for prefix in PREFIXES if start.startswith(prefix)), None)
    layer = modules(start.removeprefix(prefix)) if prefix else ()
    return Key(layer, role) if role and layer else None


def write(module: str) -> str:
    known = names(module)
    assert known, module
    return known.comfyui


DIALECT = Dialect(
    "bfl", "the original model's names", read, write, ("lora_down.weight", "lora_up.weight"), alpha=True, original=True
)
