"""The text encoders as modules without memory, so that their weights can be packed while they are read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

PREFIX = "text_model."  # of CLIP's tensors in files that older versions of transformers wrote
SHARED, COPY = "shared.weight", "encoder.embed_tokens.weight"  # T5's embedding, and a second name of it
COUNTED = "position_ids"  # 0, 1, 2, ...: older files hold them


def unfilled(kind: Any, folder: Path) -> nn.Module:
    """The encoder that the folder's configuration describes, its parameters on the meta device."""
    from accelerate import init_empty_weights

    config = kind.config_class.from_pretrained(folder, local_files_only=True)
    with init_empty_weights(include_buffers=False):
        module = kind(config)
    module.set_input_embeddings(module.get_input_embeddings())  # one embedding, by however many names
    return module


def names(own: Iterable[str], found: Iterable[str]) -> dict[str, str | None]:
    """Names in files -> the module's own where they differ; None for what the module does not keep."""
    own, found = set(own), set(found)
    different: dict[str, str | None] = {}
    for name in found - own:
        other = name.removeprefix(PREFIX) if name.startswith(PREFIX) else PREFIX + name
        if name.endswith(COUNTED):
            different[name] = None
        elif name == COPY and SHARED in own:
            different[name] = None if SHARED in found else SHARED
        elif other in own:
            different[name] = other
    return different
