"""diffusers' names: `transformer.<module>.lora_A.weight`. Read with PEFT's prefixes as well."""

from __future__ import annotations

from simpletuner.adapters.formats.dialect import DIFFUSERS, Dialect, Key, ending
from simpletuner.adapters.names import PREFIX, names

PREFIXES = (PREFIX, "base_model.model.transformer.", "base_model.model.", "diffusion_model.", "")


def read(key: str) -> Key | None:
    start, role = ending(key)
    module = start.removeprefix(next(prefix for prefix in PREFIXES if start.startswith(prefix)))
    return Key((module,), role) if role and names(module) else None


def write(module: str) -> str:
    return PREFIX + module


DIALECT = Dialect(DIFFUSERS, "diffusers' names", read, write)
