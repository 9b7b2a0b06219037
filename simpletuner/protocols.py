"""The roles: what one part may ask of another. Parts know these, never each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from simpletuner.types import Batch, Size

if TYPE_CHECKING:
    from torch import Tensor, nn


class Listing(NamedTuple):
    """One entry of a store."""

    path: str  # relative to the store's root, forward slashes
    num_bytes: int
    stamp: str  # "<bytes>-<mtime_ns>" or an etag: equal stamps mean equal content


class Source(Protocol):
    """A place to read a dataset from. It has no verb that could change the user's files."""

    def list(self) -> Iterator[Listing]: ...
    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes: ...


class Store(Source, Protocol):
    """A place of our own, for caches: whole items or none."""

    def write(self, path: str, data: bytes) -> None: ...
    def exists(self, path: str) -> bool: ...
    def delete(self, path: str) -> None: ...


class Objective(Protocol):
    """How noise is added and what the model is asked to predict. t is (B,) in [0, 1], 1 is noise; all fp32."""

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...
    def target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...


class ModelFamily(Protocol):
    """What training needs to know about an architecture. Large parts are loaded one at a time and passed in."""

    objective: Objective
    alignment: int  # image edges are multiples of it, in pixels
    latent_factor: int  # pixels per latent cell along an edge
    latent_channels: int

    def vae_fingerprint(self) -> str: ...  # sha256 hex over weights, config and precision: names the latent cache
    def text_fingerprint(self) -> str: ...  # the same over encoders, tokenizers and length
    def load_vae(self, device: Any) -> nn.Module: ...
    def load_text_encoders(self, device: Any) -> Mapping[str, Any]: ...
    def load_denoiser(self, device: Any) -> nn.Module: ...
    def encode_images(
        self, vae: nn.Module, pixels: Tensor, noise: Tensor | None
    ) -> Tensor: ...  # (B,3,h,w) in [-1,1] -> (B,C,H,W)
    def encode_text(self, encoders: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Tensor]: ...
    def shift_tokens(
        self, height: int, width: int
    ) -> int: ...  # latent size -> image tokens, for resolution-dependent shift
    def export_facts(self) -> dict[str, Any]: ...  # own settings, for the metadata of exported files
    def pipeline_files(self) -> dict[str, Path | str]: ...  # of a whole model folder, all but the denoiser
    def opening(self, whole: Path | None = None) -> list[str]: ...  # Python up to a `pipeline` of the base, or of that
    def picture(self, prompt: str, size: Size, *, steps: int, guidance: float, real: float) -> str: ...  # then this
    def layers(self) -> Mapping[str, tuple[int, ...]]: ...  # (out, in) of the denoiser's linear layers, unloaded
    def blocks(self, denoiser: nn.Module) -> list[nn.Module]: ...  # what activation checkpointing recomputes
    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor: ...  # same shape as x_t
    def sampler(self, denoiser: nn.Module) -> Sampler: ...


class SampleRequest(NamedTuple):
    """One image to make. Guidance below or equal 1 in `guidance_real` means no second pass."""

    text: Mapping[str, Tensor]  # one caption's embeddings, batch axis 1
    negative: Mapping[str, Tensor] | None
    size: Size
    steps: int
    guidance: float
    guidance_real: float
    skip_real_steps: int  # the first n steps run without real CFG
    noise: Tensor  # (1, C, H, W), fp32, on the CPU


class Sampler(Protocol):
    """Makes latents with the training denoiser; adds no copy of weights and restores every switch it touched."""

    def latents(self, request: SampleRequest) -> Tensor: ...  # (1, C, H, W)
    def decode(self, vae: nn.Module, latents: Tensor) -> Any: ...  # a PIL image


class Adapter(Protocol):
    """What is trained on top of, or instead of, the frozen base."""

    kind: str
    format: str  # dialect of what `export` writes
    checks: tuple[str, ...]  # what `check` looks at, in a word each

    def attach(self, denoiser: nn.Module) -> None: ...
    def parameters(self) -> Mapping[str, nn.Parameter]: ...  # by stable name, in the order of the model
    def disabled(self) -> AbstractContextManager[None]: ...  # the base model alone, where there is one
    def scaled(self, strength: float) -> AbstractContextManager[None]: ...
    def state(self) -> dict[str, Tensor]: ...  # exact training weights, as stored
    def load_state(self, tensors: Mapping[str, Tensor]) -> None: ...
    def summary(self) -> str: ...  # what is trained, in a few words
    def facts(self) -> dict[str, Any]: ...  # its settings, for manifests and metadata
    def export(self, folder: Path, metadata: Mapping[str, str]) -> Path: ...  # what other tools read: a file, a folder
    def check(self, file: Path) -> list[str]: ...  # what is wrong with what `export` wrote; empty if it holds
