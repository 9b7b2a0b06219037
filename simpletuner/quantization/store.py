"""Packed weights to and from the disk: plain tensors, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from simpletuner import newfile
from simpletuner.kernels import weights as kinds
from simpletuner.modules import put, put_layer, tensors, unfilled
from simpletuner.protocols import Home
from simpletuner.quantization import shelf
from simpletuner.quantization.linear import PackedLinear

HASHING = 4  # files at once: one takes longer to hash than the next to copy
SHARD_BYTES = 10**9  # what the host holds of the weights while they are written


def packed_layers(module: nn.Module) -> dict[str, PackedLinear]:
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, PackedLinear)}


def contents(module: nn.Module) -> dict[str, Tensor]:
    """All tensors of a module with packed layers, the parts of these as `<path>.<field>`."""
    found = dict(tensors(module))
    for path, layer in packed_layers(module).items():
        fields = layer.packed._asdict().items()
        found |= {f"{path}.{field}": value for field, value in fields if isinstance(value, Tensor)}
    return found


# ---- writing


def write(root: Path, key: str, module: nn.Module, facts: Mapping[str, Any]) -> None:
    """Keeps the module's weights as `<root>/<key>`; facts go into the manifest. OSError as from the file system.

    It is written aside, every file is on the disk before it gets its name, and an entry that is there already stays.
    """
    aside = shelf.aside(root, key, "tmp")
    aside.mkdir(parents=True)
    try:
        files = _write_files(aside, contents(module))
        manifest = {
            "schema": shelf.SCHEMA,
            **facts,
            "layers": {path: _described(layer.packed) for path, layer in packed_layers(module).items()},
            "tensors": {t: [name, *told] for name in files for t, told in shelf.header(aside / name).items()},
            "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in files.items()},
        }
        newfile.replace(aside / shelf.MANIFEST, json.dumps(manifest, indent=1).encode())
        newfile.sync(aside)
        try:
            os.rename(aside, root / key)
        except OSError:
            if not (root / key).is_dir():
                raise
            return  # another start was quicker, with the same content
        newfile.sync(root)
    finally:
        shelf.remove(aside)


def _described(packed: Any) -> dict[str, Any]:
    numbers = {field: value for field, value in packed._asdict().items() if not isinstance(value, Tensor)}
    return {"weight": type(packed).__name__, "numbers": numbers}


def _write_files(folder: Path, found: Mapping[str, Tensor]) -> dict[str, tuple[int, str]]:
    """Name -> (bytes, sha256) of each file. They are synced and hashed while the next ones are copied."""
    shards = list(_shards(found))
    made: dict[str, Future[tuple[int, str]]] = {}
    with ThreadPoolExecutor(HASHING) as pool:
        for number, names in enumerate(shards, 1):
            name = f"weights-{number:05}-of-{len(shards):05}.safetensors"
            shard = {member: found[member].detach().to("cpu").contiguous() for member in names}
            (folder / name).touch()
            mode = (folder / name).stat().st_mode
            save_file(shard, folder / name)
            (folder / name).chmod(mode)  # the library leaves files that their owner alone may read
            made[name] = pool.submit(_finish, folder / name)
        return {name: future.result() for name, future in made.items()}


def _shards(found: Mapping[str, Tensor]) -> Iterator[list[str]]:
    part: list[str] = []
    size = 0
    for name, tensor in found.items():
        if part and size + tensor.nbytes > SHARD_BYTES:
            yield part
            part, size = [], 0
        part.append(name)
        size += tensor.nbytes
    if part:
        yield part


def _finish(path: Path) -> tuple[int, str]:
    newfile.sync(path)
    return path.stat().st_size, newfile.sha256(path)


# ---- reading


def misfits(entry: shelf.Entry, module: nn.Module) -> list[str]:
    """What keeps a whole entry from being exactly the weights of this module, built without memory."""
    layers, own = entry.manifest["layers"], tensors(module)
    matrices = {f"{path}.weight" for path in layers}
    plain = {name for name in entry.manifest["tensors"] if name.rpartition(".")[0] not in layers or name in own}
    return sorted(matrices - own.keys()) + sorted((own.keys() - matrices) ^ plain)


def load(entry: shelf.Entry, module: nn.Module, home: Home) -> None:
    """Fills a module that was built without memory. Each tensor is copied from the mapped file to where `home` says."""
    own = tensors(module)
    where: dict[str, Any] = {}  # tensor -> the open file that has it
    with ExitStack() as stack:
        for name in entry.files:
            file = stack.enter_context(safe_open(entry.folder / name, framework="pt"))
            where |= dict.fromkeys(file.keys(), file)
        for name in where.keys() & own.keys():
            put(module, name, where[name].get_tensor(name).to(home(name), copy=True))
        for path, told in entry.manifest["layers"].items():  # whole layers, one at a time
            kind = getattr(kinds, told["weight"])
            names = [field for field in kind._fields if f"{path}.{field}" in where]
            parts = {field: where[f"{path}.{field}"].get_tensor(f"{path}.{field}") for field in names}
            there = {field: part.to(home(path), copy=True) for field, part in parts.items()}
            put_layer(module, path, PackedLinear(kind(**there, **told["numbers"])))
    left = unfilled(module)
    assert not left, f"tensors that the entry does not fill: {left}"
