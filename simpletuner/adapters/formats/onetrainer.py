"""OneTrainer's names: diffusers' with underscores, `lora_transformer_<module>.lora_down.weight`. Read only."""

from __future__ import annotations

from simpletuner.adapters.formats.dialect import Dialect, Key, ending
from simpletuner.adapters.names import names, with_dots

PREFIX = "lora_transformer_"


def read(key: str) -> Key | None:
    start, role = ending(key)
    module = with_dots(start.removeprefix(PREFIX)) if start.startswith(PREFIX) else ""
    return Key((module,), role) if role and names(module) else None


DIALECT = Dialect("onetrainer", "OneTrainer's names", read)
