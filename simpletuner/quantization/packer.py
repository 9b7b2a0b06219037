"""Fills a part of a model with packed weights: from the cache, or tensor by tensor from its files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simpletuner.errors import DiskError, HardwareError, Problem
from simpletuner.machine import disk_free, look
from simpletuner.modules import tensors
from simpletuner.protocols import Home, Unfilled
from simpletuner.quantization import kinds, pipeline, shelf, store
from simpletuner.quantization.kinds import KINDS
from simpletuner.quantization.linear import PackedLinear
from simpletuner.quantization.quantize import quantise
from simpletuner.software import versions

Via = Literal["auto", "accelerator", "cpu", "pipeline"]
KEEPING = "quantize_cache_dir"
FULL = "can't allocate memory"  # what torch says on the CPU, as a RuntimeError


@dataclass
class Packer:
    """One kind of quantised weights for one part of a model; fulfils `protocols.Quantizer`."""

    kind: str
    dtype: torch.dtype  # of the weights that are packed, and of those that stay as they are
    keep: Sequence[str] = ()  # patterns of the layers that stay
    via: Via = "auto"
    settings: Mapping[str, Any] = field(default_factory=dict)  # further ones for via=pipeline
    root: Path | None = None  # of the cache; None: nothing is kept
    suspicious: bool = False  # the last run ended without a word, so hashes are compared as well
    notices: list[Problem] = field(default_factory=list)
    num_packed: int = 0  # matrices, over all loads

    def key(self, fingerprint: str) -> str:
        """What the weights are called in the cache."""
        return shelf.key_of(fingerprint, self.kind, self.keep, str(self.dtype), shelf.way_of(self.via, self.settings))

    def kept(self, fingerprint: str) -> bool:
        """Whether the cache has the weights, as far as sizes and headers tell."""
        return self.root is not None and not shelf.flaws(self.root / self.key(fingerprint))

    def load(self, part: Unfilled, device: torch.device, home: Home | None = None) -> None:
        """Fills the module, frozen. Matrices are packed on `device`, unless `via` says the CPU, and stay on `home`.

        ConfigError if the files do not fit, DiskError if the cache has no room.
        """
        home = home or (lambda path: device)
        key, began = self.key(part.fingerprint), time.monotonic()
        if self.root and self._stored(self.root, key, part.module, home):
            seconds = time.monotonic() - began
            self._tell(f"{part.name}: {self.kind} weights from {self.root / key[:8]}…, {seconds:.1f} s")
            return
        if self.root:
            self._check_space(self.root, part.module)
        before = self.num_packed
        self._fill(part, torch.device("cpu") if self.via == "cpu" else device, home)
        seconds = time.monotonic() - began
        self._tell(f"{part.name}: {self.num_packed - before} matrices are kept in {self.kind}, {seconds:.1f} s")
        if self.root:
            self._keep(self.root, key, part)

    def _fill(self, part: Unfilled, device: torch.device, home: Home) -> None:
        made = self._made_by_library(part)
        left: list[str] = []

        def pack(path: str, matrix: Tensor) -> nn.Module | None:
            if not self.packs(path, matrix.shape[1]):
                left.extend([path] if self.packs(path, 0) else [])
                return None
            packed = made.pop(path, None) if made is not None else quantise(self.kind, matrix)
            self.num_packed += packed is not None
            return None if packed is None else PackedLinear(packed)

        try:
            part.fill(device=device, pack=pack, home=home)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if FULL not in str(error).lower() and not isinstance(error, (torch.OutOfMemoryError, MemoryError)):
                raise
            raise self._too_large(part, device) from error
        if left:
            reason = f"their inputs are not a multiple of {KINDS[self.kind].multiple}"
            self._tell(f"{len(left)} layers of {part.name} stay in {str(self.dtype)[6:]}: {reason}")

    def _made_by_library(self, part: Unfilled) -> dict[str, Any] | None:
        """What diffusers packed, where it is told to; what stays precise is read from the files all the same."""
        if self.via != "pipeline" or part.open is None:
            return None
        return pipeline.made(part.open, self.kind, self.dtype, self.settings)

    def _makers(self) -> tuple[str, ...]:
        """The packages that the codes depend on."""
        kind = KINDS[self.kind]
        return () if kind.own and self.via != "pipeline" else LIBRARIES.get(kind.library, ())

    def _too_large(self, part: Unfilled, device: torch.device) -> HardwareError:
        need = self.num_bytes(part.module)  # what is packed already counts little
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else look().ram_free_bytes
        where, fix = (
            ("GPU memory", "quantize_via=cpu") if device.type == "cuda" else ("RAM", "quantize_via=auto on a GPU")
        )
        message = f"{where} ran out while the {part.name} was packed: about {need / 1e9:.1f} GB in {self.kind}"
        fix += ", a base_model_precision with fewer bytes, or close other programs"
        return HardwareError(f"{message}, and {free / 1e9:.1f} GB are left", fix=fix)

    def packs(self, path: str, inputs: int) -> bool:
        """Whether the linear layer at `path` is one to pack."""
        return kinds.packed(KINDS[self.kind], path, inputs, self.keep)

    # ---- the cache

    def _stored(self, root: Path, key: str, module: nn.Module, home: Home) -> bool:
        """Whether the module could be filled from the cache. A damaged entry is removed."""
        folder = root / key
        if not folder.is_dir():
            return False
        wrong = shelf.damaged(folder) if self.suspicious else shelf.flaws(folder)
        entry = shelf.read(folder)
        wrong = wrong or (store.misfits(entry, module) if entry else [])
        if entry and not wrong:
            store.load(entry, module, home)
            return True
        message = f"{folder}: the quantised weights are damaged ({wrong[0]}) and are made again"
        self.notices.append(Problem(message, "cache", "warning"))
        shelf.remove(folder)
        return False

    def num_bytes(self, module: nn.Module) -> int:
        """Of the module's weights as they will be kept, about."""
        kind, total = KINDS[self.kind], 0.0
        linear = {path for path, layer in module.named_modules() if isinstance(layer, nn.Linear)}
        for name, tensor in tensors(module).items():
            path, _, leaf = name.rpartition(".")
            packed = leaf == "weight" and path in linear and self.packs(path, tensor.shape[1])
            total += tensor.numel() * (kind.num_bytes if packed else self.dtype.itemsize)
        return round(total)

    def _check_space(self, root: Path, module: nn.Module) -> None:
        need, free = self.num_bytes(module), disk_free(root)
        if need > free:
            message = f"{root}: the quantised weights take about {need / 1e9:.1f} GB, and {free / 1e9:.1f} are free"
            raise DiskError(message, fix=f"free some space, give another {KEEPING}, or quantize_cache=false")

    def _keep(self, root: Path, key: str, part: Unfilled) -> None:
        facts = {
            "part": part.name,
            "kind": self.kind,
            "dtype": str(self.dtype).removeprefix("torch."),
            "keep": list(self.keep),
            "source": part.fingerprint,
            "versions": versions(["torch", *self._makers()]),
        }
        try:
            store.write(root, key, part.module, facts)
        except OSError as error:
            message = f"{root}: the quantised weights could not be kept: {error.strerror or error}"
            fix = f"give a {KEEPING} that can be written, or quantize_cache=false; the run goes on"
            self.notices.append(Problem(message, "disk", "warning", fix=fix))

    def _tell(self, message: str) -> None:
        self.notices.append(Problem(message, severity="notice"))


LIBRARIES = {"quanto": ("optimum-quanto",), "torchao": ("torchao",), "bitsandbytes": ("bitsandbytes",)}
