"""A LoRA file written anew: in another dialect, precision or rank, and checked before it gets its name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from simpletuner import newfile
from simpletuner.adapters import delta, fused, spelling
from simpletuner.adapters.delta import Pair
from simpletuner.adapters.export import TOLERANCE
from simpletuner.adapters.formats import Dialect
from simpletuner.adapters.formats.source import Source, look
from simpletuner.adapters.lora import DTYPES
from simpletuner.adapters.lora_file import peft, peft_scale
from simpletuner.adapters.metadata import with_paths
from simpletuner.adapters.weights import Tensors
from simpletuner.errors import ConfigError, DiskError, SimpleTunerError

KNOWN = ("ss_", "modelspec.", "simpletuner.")  # how metadata that is taken over begins
PRIVATE = ("ss_dataset_dirs", "ss_datasets", "ss_reg_dataset_dirs")  # names of people's folders


@dataclass(frozen=True)
class Order:
    """What is asked for. dtype: F32, BF16 or F16; rank: None keeps that of each layer."""

    dialect: Dialect
    dtype: str
    metadata: str
    rank: int | None = None


@dataclass(frozen=True)
class Written:
    """What was written, and how near it is to what was read."""

    path: Path
    num_layers: int  # of diffusers
    rank: int  # the largest in the file
    dtype: str
    largest_difference: float  # of a layer's change, relative to it, after the change of rank
    kept: Mapping[str, float]  # layer -> share of the squared norm, if the rank was changed


def pairs_of(source: Source) -> dict[str, Pair]:
    """diffusers layer -> A and B in fp32, the scale folded into A. ConfigError if a value is not finite."""
    tensors, configuration = Tensors(source.path), peft(source.metadata)
    found: dict[str, Pair] = {}
    for names, layer in source.layers.items():
        a, b = (tensors[layer.keys[half]].float() for half in "AB")
        for half, value in (("A", a), ("B", b)):
            if not bool(value.isfinite().all()):
                what = f"{source.path}: {layer.keys[half]} holds NaN or Inf"
                raise ConfigError(what, fix="use a file of an earlier step: this training went astray")
        if layer.alpha is not None:
            scale = layer.alpha / layer.rank
        else:  # only PEFT writes it elsewhere
            scale = 1.0 if source.dialect.original else peft_scale(configuration, names[0], layer.rank)
        pair = (a if scale == 1 else a * scale, b)
        found |= fused.split(pair, names, layer.rows) if source.dialect.original else {names[0]: pair}
    return found


def convert(source: Source, order: Order, paths: Iterable[Path]) -> Written:
    """Writes the file under the first of `paths` that is free, all in one folder.

    Read back first, and each layer's change compared. FileExistsError if every name is taken.
    """
    read = pairs_of(source)
    if not read or not any(bool(b.any()) for _, b in read.values()):
        raise ConfigError(f"{source.path} changes nothing: every B is zero", fix="use a file of a later step")
    kept: dict[str, float] = {}
    wanted = read
    if order.rank:
        both = {name: delta.of_rank(pair, order.rank) for name, pair in read.items()}
        wanted, kept = {name: pair for name, (pair, _) in both.items()}, {name: k for name, (_, k) in both.items()}
    tensors, rank = spelling.tensors(_cast(source, wanted, DTYPES[order.dtype]), order.dialect)
    said = _said(source.metadata, rank)
    head = spelling.head(tensors, order.dialect, rank, list(wanted), said, order.metadata)
    paths = iter(paths)
    first = next(paths)
    aside = first.with_name(f".{first.name}.{os.getpid()}.tmp.safetensors")
    first.parent.mkdir(parents=True, exist_ok=True)
    try:
        with aside.open("xb") as file:
            file.write(save(tensors, head))
            file.flush()
            os.fsync(file.fileno())
        largest = check(aside, wanted, order)
        path = newfile.place_first(aside, (one for group in ((first,), paths) for one in group))
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        raise DiskError(f"{first}: {error.strerror or error}", fix="free some space, or check permissions") from error
    finally:
        aside.unlink(missing_ok=True)
    return Written(path, len(wanted), rank, order.dtype, largest, kept)


def _cast(source: Source, pairs: Mapping[str, Pair], dtype: torch.dtype) -> dict[str, Pair]:
    """The pairs in another precision. ConfigError if a value is too large for it."""
    found = {}
    for name, pair in pairs.items():
        a, b = _balanced(pair) if dtype == torch.float16 else pair
        found[name] = (a.to(dtype), b.to(dtype))
        if not all(bool(half.isfinite().all()) for half in found[name]):
            what = f"{source.path}: {name} has values that are too large for {str(dtype).removeprefix('torch.')}"
            raise ConfigError(what, fix="use --dtype bf16, whose range is that of fp32")
    return found


def _balanced(pair: Pair) -> Pair:
    """The same product with A and B of like size, which both then fit into fp16. Powers of two lose nothing."""
    a, b = pair
    if all(torch.equal(half.half().float(), half) for half in pair) or not (bool(a.any()) and bool(b.any())):
        return pair
    power = round((float(a.abs().max().log2()) - float(b.abs().max().log2())) / 2)
    return torch.ldexp(a, torch.tensor(-power)), torch.ldexp(b, torch.tensor(power))


def _said(metadata: Mapping[str, str], rank: int) -> dict[str, str]:
    """What the new file says of its training: what the old one said, with rank and names of its own."""
    taken = {key: value for key, value in metadata.items() if key.startswith(KNOWN) and key not in PRIVATE}
    taken = {key: value for key, value in taken.items() if key != "modelspec.hash_sha256"}
    for key in with_paths(taken):
        del taken[key]
    if any(key.startswith("ss_") for key in taken):
        taken |= {"ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    return taken


def check(path: Path, pairs: Mapping[str, Pair], order: Order) -> float:
    """Reads the file back by its keys. The largest difference of a layer's change, relative to that.

    SimpleTunerError if a layer is missing or foreign, or changes by something else than precision explains.
    """
    back = pairs_of(look(path)[0])
    wrong = [f"{name} is missing" for name in pairs if name not in back and bool(pairs[name][1].any())]
    wrong += [f"{name} was not there" for name in back if name not in pairs]
    limit, largest = TOLERANCE[DTYPES[order.dtype]], 0.0
    for name in pairs.keys() & back.keys():
        size = delta.norm(pairs[name])
        difference = delta.difference(pairs[name], back[name])
        if not difference <= limit * size:  # NaN fails too
            wrong.append(f"{name} changes its layer by {size:.4g}, and in the new file by {difference:.4g} off that")
        largest = max(largest, difference / size if size else 0.0)
    if wrong:
        fix = "nothing was written; please report it"
        raise SimpleTunerError("the new file failed its check", details=wrong[:8], fix=fix)
    return largest
