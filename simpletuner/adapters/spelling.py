"""A LoRA as a file has it: its tensors under the keys of a dialect, and the metadata beside them.

The scale is folded into A before, so alpha equals the rank wherever a dialect writes one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from safetensors.torch import save
from torch import Tensor

from simpletuner.adapters import fused
from simpletuner.adapters.delta import Pair, padded
from simpletuner.adapters.formats.dialect import DIFFUSERS, Dialect
from simpletuner.adapters.metadata import limited
from simpletuner.adapters.names import PREFIX, modules, names


def tensors(pairs: Mapping[str, Pair], dialect: Dialect) -> tuple[dict[str, Tensor], int]:
    """(key -> tensor, largest rank). pairs: diffusers layer -> A (r, in), B (out, r), whose scale is 1.

    With diffusers' layers all get the largest rank, as the file says one for all.
    """
    assert dialect.write, f"{dialect.name} is only read"
    if dialect.original:
        layers = {layer[0]: fused.join(layer, pairs) for layer in dict.fromkeys(_shared(name) for name in pairs)}
    else:
        rank = max(a.shape[0] for a, _ in pairs.values())
        layers = {name: padded(pair, rank) for name, pair in pairs.items()}
    found: dict[str, Tensor] = {}
    for name, pair in layers.items():
        start = dialect.write(name)
        for half, tensor in zip(dialect.halves, pair, strict=True):
            found[f"{start}.{half}"] = tensor.contiguous()
        if dialect.alpha:
            found[f"{start}.alpha"] = torch.tensor(float(pair[0].shape[0]))
    return found, max(a.shape[0] for a, _ in layers.values())


def _shared(name: str) -> tuple[str, ...]:
    """All diffusers layers that share the original model's layer with this one."""
    known = names(name)
    assert known, name
    return modules(known.bfl)


def head(
    found: Mapping[str, Tensor], dialect: Dialect, rank: int, layers: list[str], said: Mapping[str, str], level: str
) -> dict[str, str]:
    """The metadata of a file with these tensors. said: of its training, as far as `lora_metadata` = level lets it in.

    diffusers refuses a file with both its own metadata and alphas.
    """
    metadata = {"format": "pt"}
    if dialect.name == DIFFUSERS:
        metadata["lora_adapter_metadata"] = json.dumps(_peft(rank, layers), sort_keys=True)
    if level != "none":
        key = "modelspec.implementation"
        metadata |= limited({**said, **({key: dialect.implementation} if key in said else {})}, level)
        metadata |= hashes(found, metadata)
    return metadata


def _peft(rank: int, layers: list[str]) -> dict[str, object]:
    """PEFT's configuration of the folded file, as diffusers reads it."""
    values = {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": layers,
        "use_dora": False,
        "use_rslora": False,
        "lora_bias": False,
    }
    return {PREFIX + key: value for key, value in values.items()}


def hashes(found: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """kohya's two hashes (sd-scripts: library/train_util.py, precalculate_safetensors_hashes), and the model spec's."""
    data = save(dict(found), {key: value for key, value in metadata.items() if key.startswith("ss_")})
    body = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    legacy = hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]  # a window of the file, as older tools take it
    return {"sshs_model_hash": body, "sshs_legacy_hash": legacy, "modelspec.hash_sha256": "0x" + body}
