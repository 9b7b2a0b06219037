"""kohya's names: the original model's with underscores, `lora_unet_<layer>.lora_down.weight`, and an alpha for each."""

from __future__ import annotations

from simpletuner.adapters.formats.dialect import Dialect, Key, ending
from simpletuner.adapters.names import modules, names, with_dots

PREFIX = "lora_unet_"


def read(key: str) -> Key | None:
    start, role = ending(key)
    layer = modules(with_dots(start.removeprefix(PREFIX))) if start.startswith(PREFIX) else ()
    return Key(layer, role) if role and layer else None


def write(module: str) -> str:
    known = names(module)
    assert known, module
    return known.kohya


DIALECT = Dialect(
    "kohya", "kohya's names", read, write, ("lora_down.weight", "lora_up.weight"), alpha=True, original=True
)
