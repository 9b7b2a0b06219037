"""LoRA: y = W x + s B A x with A and B trained, on top of a frozen model."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simpletuner.adapters import export, targets, weights
from simpletuner.adapters.lora_file import LoraFile
from simpletuner.adapters.options import Adapter
from simpletuner.diffusion import draw
from simpletuner.kernels.lora import LowRank

NAME = "default"  # of the adapter inside PEFT's layers
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}  # as safetensors writes them


class Lora:
    """A LoRA for one denoiser. `names`: module names to adapt (see `targets.matches`); dtype: that of A and B."""

    kind = "lora"
    checks = ("keys", "values", "scale")

    def __init__(self, options: Adapter, names: Sequence[str], *, seed: int, dtype: torch.dtype):
        self.options, self.names, self.seed, self.dtype = options, tuple(names), seed, dtype
        self.scale = options.scale
        self.layers: dict[str, Any] = {}  # module path -> PEFT's layer, in the order of the model
        self._scales: dict[tuple[float, torch.device], Tensor] = {}  # on the device

    @classmethod
    def build(cls, options: Adapter, targets: Callable[..., Sequence[str]], *, seed: int, dtype: torch.dtype) -> Lora:
        """The adapter that the options describe. targets: (preset, own names or None) -> names, as a family has it."""
        return cls(options, targets(options.flux_lora_target, options.peft_lora_target_modules), seed=seed, dtype=dtype)

    @classmethod
    def of_file(cls, file: LoraFile) -> Lora:
        """The adapter that a file was written from, with a scale of 1. Attach it, then load `file.state()`."""
        exactly = [f"^{re.escape(module)}$" for module in file.modules]  # a bare path would also match as an ending
        options = Adapter().model_copy(update={"lora_rank": file.rank})  # of any size, other programs' too
        return cls(options, exactly, seed=0, dtype=DTYPES[file.dtype])

    @property
    def format(self) -> str:
        """The dialect of the exported file."""
        return self.options.lora_format

    def attach(self, denoiser: nn.Module) -> None:
        """Puts the adapter into the model, which otherwise stays as it is; its output does not change yet."""
        from peft import LoraConfig, inject_adapter_in_model

        linear = [path for path, module in denoiser.named_modules() if isinstance(module, nn.Linear)]
        paths = targets.find(linear, self.names)
        config = LoraConfig(
            r=self.options.lora_rank,
            lora_alpha=self.options.alpha,  # type: ignore[arg-type] # PEFT only divides by it
            lora_dropout=self.options.lora_dropout,
            use_rslora=self.options.flux_lora_module_type == "rslora",
            target_modules="|".join(re.escape(path) for path in paths),  # a text is matched against whole paths
            init_lora_weights=False,
        )
        with torch.random.fork_rng(devices=[]):  # the start values below are addressed; PEFT draws its own first
            inject_adapter_in_model(config, denoiser, NAME)
        self.layers = {path: denoiser.get_submodule(path) for path in paths}
        device = _device(denoiser)
        for path, layer in self.layers.items():
            self._start(path, layer, device)

    def _start(self, path: str, layer: Any, device: torch.device) -> None:
        """A drawn by the module's name, so that adding a layer moves no other; B zero."""
        a, b = layer.lora_A[NAME], layer.lora_B[NAME]
        shape, rank = (a.out_features, a.in_features), a.out_features
        if self.options.lora_init_type == "gaussian":
            value = draw.normal(shape, "init", self.seed, path) / rank
        else:  # Kaiming uniform with a = sqrt(5), as torch starts a linear layer
            bound = 1 / math.sqrt(a.in_features)
            value = torch.empty(shape).uniform_(-bound, bound, generator=draw.generator("init", self.seed, path))
        a.weight = nn.Parameter(value.to(device, self.dtype))
        b.weight = nn.Parameter(torch.zeros(b.out_features, rank, device=device, dtype=self.dtype))

    def parameters(self) -> dict[str, nn.Parameter]:
        """`<module>.lora_A.weight` (r, in) and `<module>.lora_B.weight` (out, r) of every adapted module."""
        found = {}
        for path, layer in self.layers.items():
            found[f"{path}.lora_A.weight"] = layer.lora_A[NAME].weight
            found[f"{path}.lora_B.weight"] = layer.lora_B[NAME].weight
        return found

    def low_rank(self) -> dict[str, Callable[[], LowRank | None]] | None:
        """Module path -> its factors at the moment of the call. None with dropout, which only PEFT's layers have."""
        if self.options.lora_dropout:
            return None
        return {path: functools.partial(self._factors, layer) for path, layer in self.layers.items()}

    def _factors(self, layer: Any) -> LowRank | None:
        if layer.disable_adapters:
            return None
        a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        key = (layer.scaling[NAME], a.device)
        if key not in self._scales:  # made once: a copy from the host in every step would cost a launch for each layer
            self._scales[key] = torch.tensor(key[0], dtype=torch.float32, device=a.device)
        return LowRank(a, b, self._scales[key])

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model alone."""
        before = [layer.disable_adapters for layer in self.layers.values()]
        self._switch([False] * len(before))
        try:
            yield
        finally:
            self._switch([not off for off in before])

    def _switch(self, on: Sequence[bool]) -> None:
        for layer, enabled in zip(self.layers.values(), on, strict=True):
            layer.enable_adapters(enabled)

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """The adapter at `strength` times its effect."""
        before = [layer.scaling[NAME] for layer in self.layers.values()]
        for layer in self.layers.values():
            layer.scaling[NAME] *= strength
        try:
            yield
        finally:
            for layer, scale in zip(self.layers.values(), before, strict=True):
                layer.scaling[NAME] = scale

    def state(self) -> dict[str, Tensor]:
        """Exact training weights on the CPU, without the scale."""
        return weights.copied(self.parameters())

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state()`. ConfigError if other modules or another rank were trained."""
        fix = "keep lora_rank and flux_lora_target as they were, or start a new run"
        weights.restore(self.parameters(), tensors, "adapter", fix)

    def summary(self) -> str:
        """What is trained, in the words of the first screen."""
        return f"LoRA rank {self.options.lora_rank} on {self.options.flux_lora_target!r}"

    def facts(self) -> dict[str, Any]:
        """Its settings, for manifests and metadata."""
        options = self.options
        return {"rank": options.lora_rank, "alpha": options.alpha, "targets": options.flux_lora_target}

    def export(self, folder: Path, metadata: Mapping[str, str]) -> Path:
        """Writes the file that other tools read, the scale folded into A. `metadata`: see `export.describe`."""
        return export.write(folder, self._pairs(), self.scale, self.options, metadata)

    def check(self, file: Path) -> list[str]:
        """What is wrong with an exported file, compared with the live adapter; empty if it holds."""
        return export.check(file, self._pairs(), self.scale)

    def _pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        state = self.state()
        return {path: (state[f"{path}.lora_A.weight"], state[f"{path}.lora_B.weight"]) for path in self.layers}


def _device(denoiser: nn.Module) -> torch.device:
    """Where it computes: frozen weights may wait in RAM, what is trained never does."""
    found = {tensor.device for tensor in denoiser.parameters()}
    return next((device for device in found if device.type != "cpu"), torch.device("cpu"))
