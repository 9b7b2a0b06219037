"""The LoRA file that other tools read: diffusers' names, the scale folded in, metadata, and a check of all of it.

Readers disagree on where a scale is written, so none is left to read: A is multiplied by it, and alpha equals the rank.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from simpletuner.adapters import spelling
from simpletuner.adapters.formats import FORMATS
from simpletuner.adapters.kinds import LORA
from simpletuner.adapters.metadata import with_paths
from simpletuner.adapters.names import KEY, PREFIX, names
from simpletuner.adapters.options import Adapter
from simpletuner.diffusion import draw

FILE = LORA
# Words by which diffusers takes a file for another tool's and converts it.
FORBIDDEN = ("processor", "base_model", "query_norm.scale", "lora_down")
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}  # of the delta, relative
Pairs = Mapping[str, tuple[Tensor, Tensor]]  # module -> A (r, in), B (out, r)


def write(folder: Path, pairs: Pairs, scale: float, options: Adapter, metadata: Mapping[str, str]) -> Path:
    """Writes the file aside, syncs it and puts it in place. Returns its path."""
    dialect = FORMATS[options.lora_format]
    folded = {module: ((a.float() * scale).to(a.dtype), b) for module, (a, b) in pairs.items()}
    tensors, rank = spelling.tensors(folded, dialect)
    head = spelling.head(tensors, dialect, rank, list(pairs), metadata, options.lora_metadata)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{FILE}.tmp-{os.getpid()}"
    with aside.open("wb") as file:
        file.write(save(tensors, head))
        os.fsync(file.fileno())
    os.replace(aside, folder / FILE)
    return folder / FILE


def check(path: Path, pairs: Pairs, scale: float) -> list[str]:
    """What is wrong with the file, compared with the live weights; one line a finding, each naming its key."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        return [f"{path.name} cannot be read: {error}"]
    found, wrong = _sorted(tensors)
    wrong += _check_scale(found, metadata)
    wrong += [f"metadata {key} holds a path" for key in with_paths(metadata)]
    wrong += [f"{module} was trained and is not in the file" for module in pairs if module not in found]
    wrong += [f"{module} is in the file and was not trained" for module in found if module not in pairs]
    for module in pairs.keys() & found.keys():
        wrong += _check_module(module, found[module], pairs[module], scale)
    trained = any(bool(b.any()) for _, b in pairs.values())
    if trained and not any(
        bool(part.any()) for parts in found.values() for part in [parts.get("lora_B.weight")] if part is not None
    ):
        wrong.append("every lora_B is zero: the file changes nothing")
    return wrong


def _sorted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """(module -> ending -> tensor, findings about single keys)."""
    found: dict[str, dict[str, Tensor]] = {}
    wrong = []
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if not match or any(word in key for word in FORBIDDEN):
            wrong.append(f"{key} is not a key of diffusers' names")
            continue
        if names(match[1]) is None:
            wrong.append(f"{key}: kohya and ComfyUI have no such layer")
        if not bool(torch.isfinite(tensor).all()):
            wrong.append(f"{key} holds a value that is not finite")
        found.setdefault(match[1], {})[match[2]] = tensor
    known = [names(module) for module in found]
    if len(set(known)) != len(known):
        wrong.append("two modules have one name in another dialect")
    return found, wrong


def _check_scale(found: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, str]) -> list[str]:
    """A reader finds the scale once, and it is 1: alpha equals the rank."""
    peft = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    with_alpha = [module for module, parts in found.items() if "alpha" in parts]
    wrong = []
    if peft and with_alpha:
        wrong.append(f"{PREFIX}{with_alpha[0]}.alpha and lora_adapter_metadata are both there: diffusers refuses that")
    if peft and peft.get(PREFIX + "lora_alpha") != peft.get(PREFIX + "r"):
        wrong.append("lora_adapter_metadata: lora_alpha differs from r, though the scale is folded in")
    if not peft and len(with_alpha) != len(found):
        wrong.append("neither lora_adapter_metadata nor an alpha for every module")
    for module, parts in found.items():
        rank = parts["lora_A.weight"].shape[0] if "lora_A.weight" in parts else None
        if "alpha" in parts and float(parts["alpha"]) != rank:
            wrong.append(f"{PREFIX}{module}.alpha is {float(parts['alpha']):g}, the rank is {rank}")
        if peft and rank != peft.get(PREFIX + "r"):
            wrong.append(f"{PREFIX}{module}: rank {rank}, lora_adapter_metadata says {peft.get(PREFIX + 'r')}")
    return wrong


def _check_module(module: str, parts: Mapping[str, Tensor], live: tuple[Tensor, Tensor], scale: float) -> list[str]:
    """Both halves are there, and do to a fixed input what the live ones do."""
    a, b = parts.get("lora_A.weight"), parts.get("lora_B.weight")
    if a is None or b is None:
        return [f"{PREFIX}{module}: {'lora_A' if a is None else 'lora_B'} is missing"]
    if a.shape != live[0].shape or b.shape != live[1].shape:
        return [f"{PREFIX}{module}: shapes {list(a.shape)}, {list(b.shape)} are not those that were trained"]
    probe = draw.normal((a.shape[1], 4), "probe", module).double()  # (in, 4)
    mine = live[1].double() @ (live[0].double() @ probe) * scale
    theirs = b.double() @ (a.double() @ probe)  # (out, 4)
    limit = TOLERANCE.get(a.dtype, 1e-6) * float(mine.norm())
    if not float((mine - theirs).norm()) <= limit:  # NaN fails too
        return [f"{PREFIX}{module}: the file changes the layer by something else than was trained"]
    return []
