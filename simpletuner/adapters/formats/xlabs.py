"""XLabs' names: `double_blocks.0.processor.qkv_lora1.down.weight`, 1 for the image and 2 for the text. Read only."""

from __future__ import annotations

import re

from simpletuner.adapters.formats.dialect import Dialect, Key
from simpletuner.adapters.names import modules

KEY = re.compile(r"(double|single)_blocks\.(\d+)\.processor\.(qkv|proj)_lora([12]?)\.(down|up)\.weight")
STREAMS = {"1": "img_attn", "2": "txt_attn"}


def read(key: str) -> Key | None:
    match = KEY.fullmatch(key)
    if not match or (match[1] == "double") != bool(match[4]):
        return None
    kind, block, what, stream, half = match.groups()
    if kind == "double":
        layer = modules(f"double_blocks.{block}.{STREAMS[stream]}.{what}")
    elif what == "qkv":
        layer = modules(f"single_blocks.{block}.linear1")[:3]  # without the feed-forward rows
    else:
        layer = modules(f"single_blocks.{block}.linear2")
    return Key(layer, "A" if half == "down" else "B")


DIALECT = Dialect("xlabs", "XLabs' names", read, original=True)
