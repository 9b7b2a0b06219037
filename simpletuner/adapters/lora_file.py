"""A LoRA file read back: what its header promises, whether that fits a model, and its weights.

The header is read without torch, so that a wrong file is told of before anything large is loaded.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simpletuner.adapters.names import KEY, PREFIX
from simpletuner.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# How keys of other layouts begin, or what they hold, and whose they are.
OTHERS = {
    "lora_unet_": "kohya's names",
    "lora_transformer_": "OneTrainer's names",
    "lycoris_": "LyCORIS' names",
    "diffusion_model.": "the original model's names",
    "base_model.model.": "the original model's names",
    ".processor.": "XLabs' names",
    "lora_magnitude_vector": "DoRA's names",
}
NOT_CONVERTED = ("LyCORIS' names", "DoRA's names")
PRECISIONS = ("F32", "BF16", "F16")  # as safetensors writes them, widest first
LARGEST_HEADER = 100 * 2**20  # bytes; safetensors' own limit
TOLD = 6  # layers named in a message


@dataclass(frozen=True)
class LoraFile:
    """What a file of diffusers' names holds: `<prefix><module>.lora_A.weight` (r, in), `.lora_B.weight` (out, r)."""

    path: Path
    modules: Mapping[str, tuple[int, int, int]]  # module -> (out, rank, in)
    metadata: Mapping[str, str]
    dtype: str  # of A and B: one of PRECISIONS

    @property
    def rank(self) -> int:
        """The same for every module: `read` has looked."""
        return next(rank for _, rank, _ in self.modules.values())

    @cached_property
    def peft(self) -> Mapping[str, Any]:
        """PEFT's configuration without prefix; empty if the file has none."""
        return peft(self.metadata)

    def check(self, layers: Mapping[str, tuple[int, ...]], model: str) -> None:
        """ConfigError unless every module of the file is a layer of the model, (out, in), of its shape."""
        unknown = [name for name in self.modules if name not in layers]
        other = {
            name: f"{name} is {list(layers[name])} here, and {[out, into]} in the file"
            for name, (out, _, into) in self.modules.items()
            if name in layers and tuple(layers[name]) != (out, into)
        }
        wrong = [f"{name} is no layer of the model" for name in unknown] + list(other.values())
        if not wrong:
            return
        fits = len(self.modules) - len(wrong)
        said = self.metadata.get("simpletuner.flavour")
        raise ConfigError(
            f"{self.path} is not a LoRA for {model}: {fits} of its {len(self.modules)} layers fit, rank {self.rank}",
            fix="give the model that it was trained on" + (f", which is {said}, the file says" if said else ""),
            details=[*wrong[:TOLD], *([f"and {len(wrong) - TOLD} more"] if len(wrong) > TOLD else [])],
        )

    def state(self) -> dict[str, Tensor]:
        """`<module>.lora_A.weight` and `.lora_B.weight` on the CPU, what alpha says folded into A: the scale is 1."""
        from simpletuner.adapters.weights import Tensors

        tensors, found = Tensors(self.path), {}
        for module, (_, rank, _) in self.modules.items():
            a, b = (tensors[f"{PREFIX}{module}.{half}.weight"] for half in ("lora_A", "lora_B"))
            alpha = tensors.get(f"{PREFIX}{module}.alpha")
            scale = peft_scale(self.peft, module, rank) if alpha is None else float(alpha) / rank
            found[f"{module}.lora_A.weight"] = a if scale == 1 else (a.float() * scale).to(a.dtype)
            found[f"{module}.lora_B.weight"] = b
        return found


def peft(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """PEFT's configuration in a file's metadata, without prefix; empty if there is none."""
    try:
        values = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return {}
    return {k.removeprefix(PREFIX): v for k, v in values.items()} if isinstance(values, dict) else {}


def peft_scale(configuration: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / rank by PEFT's configuration; without one alpha is the rank."""
    alpha = (configuration.get("alpha_pattern") or {}).get(module, configuration.get("lora_alpha", rank))
    return float(alpha) / (math.sqrt(rank) if configuration.get("use_rslora") else rank)


def read(path: Path) -> LoraFile:
    """ConfigError if there is no such file, or if it is not a LoRA in a layout that is read here."""
    head = header(path)
    metadata = head.pop("__metadata__", {})
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    strange = []
    for key, entry in head.items():
        if match := KEY.fullmatch(key):
            shapes.setdefault(match[1], {})[match[2]] = tuple(entry["shape"])
        else:
            strange.append(key)
    if strange:
        raise _strange(path, strange, len(head))
    modules = {}
    for module, parts in shapes.items():
        a, b = parts.get("lora_A.weight", ()), parts.get("lora_B.weight", ())
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            found = f"lora_A {list(a) or 'missing'}, lora_B {list(b) or 'missing'}"
            raise ConfigError(f"{path}: {module}: {found}: not the two halves of a LoRA", fix="copy the file again")
        modules[module] = (b[0], a[0], a[1])
    dtypes = {entry["dtype"] for key, entry in head.items() if not key.endswith(".alpha")}
    ranks = {rank for _, rank, _ in modules.values()}
    if len(ranks) > 1 or len(dtypes) > 1 or not dtypes <= {*PRECISIONS}:
        found = f"ranks {', '.join(map(str, sorted(ranks)))} in {', '.join(sorted(dtypes))}"
        known = f"one rank in one of {', '.join(PRECISIONS)} is read"
        raise ConfigError(f"{path} has {found}: only {known}", fix="use another file")
    return LoraFile(path, modules, metadata, min(dtypes))


def header(path: Path) -> dict[str, Any]:
    """The JSON at the head of a safetensors file: name -> dtype, shape, and __metadata__."""
    if path.suffix.lower() in PICKLES:
        fix = "use the LoRA's .safetensors file"
        raise ConfigError(f"{path} is a pickle, which can run any code when it is opened", fix=fix)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(length)) if 0 < length <= LARGEST_HEADER else {}
        ends = [entry["data_offsets"][1] for key, entry in head.items() if key != "__metadata__"]
        whole = path.stat().st_size == 8 + length + max(ends)
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a folder", fix="name the .safetensors file in it, or use --run") from error
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}", fix="correct the path") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", fix="check its permissions") from error
    except (ValueError, KeyError, TypeError, AttributeError):  # not JSON, not of this shape, or without a tensor
        whole = False
    if not whole:
        raise ConfigError(f"{path} is not a whole safetensors file", fix="copy or download it again")
    return head


def _strange(path: Path, keys: list[str], count: int) -> ConfigError:
    known = next((whose for key in keys for word, whose in OTHERS.items() if word in key), None)
    if known:
        fix = "use the file in diffusers' layout"
        if known not in NOT_CONVERTED:
            fix = f"simpletuner export {shlex.quote(str(path))} --format diffusers writes one that is read"
        return ConfigError(f"{path} has {known}, such as {keys[0]}", fix=fix)
    what = f"{len(keys)} of its {count} keys are not a LoRA's, such as {keys[0]}"
    return ConfigError(f"{path} is not a LoRA: {what}", fix="give a LoRA, such as pytorch_lora_weights.safetensors")
