"""Full training: every weight of the transformer itself is trained, and nothing lies beneath it."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from simpletuner.adapters import weights
from simpletuner.adapters.kinds import KINDS
from simpletuner.adapters.metadata import limited, with_paths
from simpletuner.adapters.options import Adapter

FOLDER = KINDS["full"].export
STEM, CONFIG = "diffusion_pytorch_model", "config.json"  # as diffusers names a model's files
LARGEST_SHARD = 10 * 10**9  # bytes
OF_ANOTHER = ("_name_or_path",)  # where the author of the base had it: says nothing about this model


class Full:
    """Training of all parameters of one denoiser, a diffusers model loaded in `dtype`.

    fp32 weights take any optimizer and are computed with in the precision of the run. bf16 weights are for an optimizer
    that rounds by chance or keeps what it cut off: a step of 1e-5 is far below half a bf16 step of most weights.
    """

    kind = "full"
    format, checks = "diffusers", ("keys", "values")

    def __init__(self, options: Adapter, *, dtype: torch.dtype):
        self.options, self.dtype = options, dtype
        self.denoiser: Any = None

    @classmethod
    def build(cls, options: Adapter, targets: Callable[..., Any], *, seed: int, dtype: torch.dtype) -> Full:
        """There are no layers to choose and no start values to draw: `targets` and `seed` are for other kinds."""
        return cls(options, dtype=dtype)

    def attach(self, denoiser: nn.Module) -> None:
        """Makes every parameter trainable. The model still computes what it did."""
        other = {p.dtype for p in denoiser.parameters()} - {self.dtype}
        assert not other, f"the weights are {other}, and {self.dtype} is trained: the rules see to the loader's choice"
        self.denoiser = denoiser.requires_grad_(True).train()

    def parameters(self) -> dict[str, nn.Parameter]:
        """All of them, by the model's own names."""
        return dict(self.denoiser.named_parameters())

    def low_rank(self) -> None:
        """The weights themselves are trained, which the modules do as they are."""
        return None

    def disabled(self) -> Any:
        raise AssertionError("full training has no base model beneath it; nobody may ask for one")

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """The model as it is: `strength` is 1, since there is nothing to add less or more of."""
        assert strength == 1.0, f"full training has no strength, and {strength} is asked for"
        yield

    def state(self) -> dict[str, Tensor]:
        """Exact training weights on the CPU."""
        return weights.copied(self.parameters())

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state()`, or what `export` wrote. ConfigError if it is of another model."""
        fix = "resume with the base model that the run began with, or start a new run in another output_dir"
        weights.restore(self.parameters(), tensors, "transformer", fix)

    def summary(self) -> str:
        return "all weights"

    def facts(self) -> dict[str, Any]:
        return {}

    def export(self, folder: Path, metadata: Mapping[str, str]) -> Path:
        """Writes a folder that diffusers' `from_pretrained` opens, whole or not at all. It holds the exact state."""
        aside, target = folder / f".{FOLDER}.tmp-{uuid.uuid4().hex}", folder / FOLDER
        aside.mkdir(parents=True)
        (aside / CONFIG).write_text(json.dumps(self._config(), indent=2, sort_keys=True) + "\n", "utf-8")
        head = {"format": "pt"} | limited(metadata, self.options.lora_metadata)
        weights.write(aside, STEM, self.denoiser.state_dict(), head, LARGEST_SHARD)
        os.rename(aside, target)
        return target

    def _config(self) -> dict[str, Any]:
        values = json.loads(self.denoiser.to_json_string())
        return {key: value for key, value in values.items() if key not in OF_ANOTHER}

    def check(self, file: Path) -> list[str]:
        """What is wrong with an exported folder, compared with the live weights; one line a finding."""
        try:
            config, saved = json.loads((file / CONFIG).read_text("utf-8")), weights.Tensors(file)
            wrong = [] if config == self._config() else [f"{CONFIG} is not that of the trained model"]
            return wrong + _check_metadata(saved) + _check_tensors(saved, self.denoiser.state_dict())
        except (OSError, ValueError, SafetensorError) as error:
            return [f"{file.name} cannot be read: {error}"]


def _check_metadata(saved: weights.Tensors) -> list[str]:
    wrong = []
    for path in saved.files:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        wrong += [f"{path.name}: metadata {key} holds a path" for key in with_paths(metadata)]
    return wrong


def _check_tensors(saved: weights.Tensors, live: Mapping[str, Tensor]) -> list[str]:
    """Every weight is there once, in its precision, with its bits."""
    wrong = [f"{name} was trained and is not in the files" for name in live if name not in saved]
    wrong += [f"{name} is in the files and was not trained" for name in saved if name not in live]
    for name in live.keys() & saved.keys():
        tensor, own = saved[name], live[name].detach()
        if len(saved.places[name]) > 1:
            wrong.append(f"{name} is in {len(saved.places[name])} files")
        elif tensor.dtype != own.dtype or tensor.shape != own.shape:
            wrong.append(f"{name} is {tensor.dtype} {list(tensor.shape)} instead of {own.dtype} {list(own.shape)}")
        elif not torch.equal(tensor, own.to("cpu")):  # NaN fails too
            wrong.append(f"{name} does not hold the trained values")
    return wrong
