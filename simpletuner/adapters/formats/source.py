"""A LoRA file of any dialect, looked at: its layers, their sizes, and what is not read. No torch."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from simpletuner.adapters import lora_file
from simpletuner.adapters.formats import Dialect, recognised
from simpletuner.errors import ConfigError, Problem

# A piece of a key -> the kind of file that it gives away, and what to do.
REFUSED = {
    "lora_magnitude_vector": ("a DoRA", "train with flux_lora_module_type=standard: DoRA is not converted yet"),
    "dora_scale": ("a DoRA", "train with flux_lora_module_type=standard: DoRA is not converted yet"),
    ".magnitude": ("a DoRA", "train with flux_lora_module_type=standard: DoRA is not converted yet"),
    "lokr_": ("a LoKr", "give a plain LoRA: LyCORIS' kinds are not converted yet"),
    "hada_": ("a LoHa", "give a plain LoRA: LyCORIS' kinds are not converted yet"),
    "oft_": ("an OFT", "give a plain LoRA: LyCORIS' kinds are not converted yet"),
    "norm.query_norm.scale": ("a control model", "give a LoRA: a control model changes more than its layers"),
    "norm.key_norm.scale": ("a control model", "give a LoRA: a control model changes more than its layers"),
    "lora_A.bias": ("a LoRA with biases, such as a control model's", "give a LoRA without"),
    "lora_B.bias": ("a LoRA with biases, such as a control model's", "give a LoRA without"),
}
TEXT = ("text_encoder.", "text_encoder_2.", "lora_te_", "lora_te1_", "lora_te2_", "te1.", "te2.")  # text encoders' keys
NUMBERS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i"}  # an alpha's precisions, for struct
TOLD = 6  # findings in a message


@dataclass(frozen=True)
class Layer:
    """One layer of a file as it is cut there."""

    keys: Mapping[str, str]  # A and B -> the tensor's key
    alpha: float | None
    rows: tuple[int, ...]  # output rows of each of the diffusers layers that share it
    rank: int
    inputs: int


@dataclass(frozen=True)
class Source:
    """What a file holds. `layers`: the diffusers layers that share a layer of the file -> that layer."""

    path: Path
    dialect: Dialect
    layers: Mapping[tuple[str, ...], Layer]
    metadata: Mapping[str, str]
    dtype: str  # the widest of A and B: F32, BF16 or F16

    @property
    def outside(self) -> list[str]:
        """The layers before and after the blocks: of them, diffusers reads none in files of the original's names."""
        return [name for names in self.layers for name in names if "transformer_blocks." not in name]


def look(path: Path) -> tuple[Source, list[Problem]]:
    """(the file, notices). ConfigError unless it is a LoRA of one dialect that is read, with both halves of each."""
    header = lora_file.header(path)
    metadata = header.pop("__metadata__", {})
    text = [key for key in header if key.startswith(TEXT)]
    keys = [key for key in header if key not in text]
    _refuse(path, keys)
    dialect = _one(path, keys, recognised(keys))
    alphas = _alphas(path, {key: header[key] for key in keys if key.endswith(".alpha")})
    layers, dtypes = _layers(path, dialect, {key: header[key] for key in keys}, alphas)
    found = []
    if text:
        what = f"{len(text)} tensors of text encoders are left out, such as {text[0]}"
        found.append(Problem(f"{path}: {what}: only the transformer is trained here", severity="notice"))
    if split := _by_part(layers, dialect):
        what = f"{len(split)} fused layers have several times the rank of the others and the same alpha"
        said = f"such as {split[0]}; what sd-scripts trains with split_qkv is weaker than it was, in every program"
        found.append(Problem(f"{path}: {what}: {said}", severity="notice"))
    return Source(path, dialect, layers, metadata, min(dtypes, key=lora_file.PRECISIONS.index)), found


def _refuse(path: Path, keys: Sequence[str]) -> None:
    for word, (kind, fix) in REFUSED.items():
        if key := next((key for key in keys if word in key), None):
            raise ConfigError(f"{path} is {kind}, by its key {key}: only a plain LoRA is converted", fix=fix)


def _one(path: Path, keys: Sequence[str], dialects: Sequence[Dialect]) -> Dialect:
    """The dialect of all keys. Read with two, a layer would count twice."""
    whole = next((one for one in dialects if all(one.read(key) for key in keys)), None)
    if whole:
        return whole
    if not dialects:
        what = f"none of its {len(keys)} tensors is of a LoRA for Flux" + (f", such as {keys[0]}" if keys else "")
        raise ConfigError(f"{path} is not a LoRA that is read here: {what}", fix="give a LoRA file for FLUX.1")
    first, rest = dialects[0], dialects[1:]
    strange = [key for key in keys if not first.read(key)]
    for other in rest:
        if key := next((key for key in strange if other.read(key)), None):
            what = f"{path} mixes {first.title} with {other.title}, such as {key}"
            raise ConfigError(f"{what}: programs would add both or drop one", fix="use the file that it was made from")
    what = f"{len(strange)} of its {len(keys)} tensors are no layer of Flux, such as {strange[0]}"
    raise ConfigError(f"{path} has {first.title}, but {what}", fix="use another file")


def _alphas(path: Path, header: Mapping[str, Any]) -> dict[str, float]:
    """Key -> number, of the tensors in `header`. ConfigError if one is not a number above 0."""
    found, wrong = {}, []
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        for key, entry in header.items():
            first, last = entry["data_offsets"]
            file.seek(start + first)
            data, code = file.read(last - first), NUMBERS.get(entry["dtype"])
            if entry["dtype"] == "BF16":
                data, code = b"\0\0" + data, "<f"  # the upper half of an fp32
            if code and len(data) == struct.calcsize(code) and 0 < (number := struct.unpack(code, data)[0]) < inf:
                found[key] = float(number)
            else:
                wrong.append(f"{key} is not a number above 0")
    if wrong:
        raise ConfigError(f"{path} is not a whole LoRA", fix="use another file", details=_first(wrong))
    return found


def _layers(
    path: Path, dialect: Dialect, header: Mapping[str, Any], alphas: Mapping[str, float]
) -> tuple[dict[tuple[str, ...], Layer], set[str]]:
    """(layers, precisions of A and B). One ConfigError with all that is wrong."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    wrong, dtypes = [], set()
    for key, entry in header.items():
        read = dialect.read(key)
        assert read  # or another dialect would have been found
        keys = found.setdefault(read.layer, {})
        if read.role in keys:
            wrong.append(f"{keys[read.role]} and {key} are of the same layer")
        keys[read.role] = key
        dtypes |= {entry["dtype"]} if read.role != "alpha" else set()
    layers = {}
    for layer, keys in found.items():
        a, b = (header[keys[half]]["shape"] if half in keys else [] for half in "AB")
        rows = _rows(layer, a, b)
        if not rows:
            wrong.append(f"{next(iter(keys.values()))}: A is {a or 'missing'}, B is {b or 'missing'}")
        else:
            alpha = alphas.get(keys.pop("alpha", ""))
            layers[layer] = Layer(keys, alpha, rows, a[0], a[1])
    wrong += [f"precision {dtype} is not read" for dtype in sorted(dtypes - {*lora_file.PRECISIONS})]
    if wrong:
        raise ConfigError(f"{path} is not a whole LoRA", fix="copy or download it again", details=_first(wrong))
    return layers, dtypes


def _rows(layer: Sequence[str], a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    """How the output rows are shared; () if the two do not fit each other and the layer.

    Queries, keys and values are as wide as what goes in; what is left belongs to the feed-forward.
    """
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0]:
        return ()
    if len(layer) == 1:
        return (b[0],)
    rest = b[0] - 3 * a[1]
    if (len(layer) == 3 and rest) or (len(layer) == 4 and rest <= 0):
        return ()
    return (a[1],) * 3 + ((rest,) if len(layer) == 4 else ())


def _by_part(layers: Mapping[tuple[str, ...], Layer], dialect: Dialect) -> list[str]:
    """Fused layers that seem to be put together from parts, each with rank and alpha of the other layers."""
    single = {(layer.rank, layer.alpha) for names, layer in layers.items() if len(names) == 1}
    if not dialect.original or len(single) != 1:
        return []
    ((rank, alpha),) = single
    fused = ((names, layer) for names, layer in layers.items() if len(names) > 1 and layer.alpha is not None)
    return [one.keys["A"] for names, one in fused if (one.rank, one.alpha) == (len(names) * rank, alpha)]


def _first(wrong: Iterable[str]) -> list[str]:
    lines = list(wrong)
    return [*lines[:TOLD], *([f"and {len(lines) - TOLD} more"] if len(lines) > TOLD else [])]
