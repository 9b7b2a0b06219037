"""Named tensors on disk: written in shards, read one at a time, put back where they were."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

from simpletuner.errors import ConfigError


class Tensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, or of all those in a folder; each is read when it is asked for."""

    def __init__(self, path: Path):
        self.files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]

    @cached_property
    def places(self) -> dict[str, list[Path]]:
        """Name -> every file that holds a tensor of that name. One is as it should be."""
        found: dict[str, list[Path]] = {}
        for path in self.files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    found.setdefault(name, []).append(path)
        return found

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.places[name][0], framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def write(
    folder: Path, stem: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], largest_bytes: int
) -> None:
    """Writes `<stem>.safetensors`, or shards of at most `largest_bytes` and their index, as the hub's tools name them.

    The host holds one shard at a time besides tensors that lie there anyway.
    """
    pattern = f"{stem}{{suffix}}.safetensors"
    split = split_torch_state_dict_into_shards(dict(tensors), filename_pattern=pattern, max_shard_size=largest_bytes)
    for name, members in split.filename_to_tensors.items():
        shard = {member: tensors[member].detach().to("cpu").contiguous() for member in members}
        path = folder / name
        path.touch()
        mode = path.stat().st_mode
        save_file(shard, path, dict(metadata))
        path.chmod(mode)  # the library leaves files that their owner alone may read
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def copied(own: Mapping[str, Parameter]) -> dict[str, Tensor]:
    """The parameters' values on the CPU, which later steps do not change: what `restore` puts back."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in own.items()}


def restore(own: Mapping[str, Parameter], saved: Mapping[str, Tensor], what: str, fix: str) -> None:
    """Copies the saved tensors over the parameters of the same names. ConfigError if they are not the same set."""
    wrong = sorted(own.keys() ^ saved.keys())
    wrong += [name for name in own.keys() & saved.keys() if own[name].shape != saved[name].shape]
    if wrong:
        message = f"the saved {what} does not fit this one: {len(wrong)} of {len(own)} tensors differ"
        raise ConfigError(message, fix=fix, details=wrong[:8])
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(saved[name])
