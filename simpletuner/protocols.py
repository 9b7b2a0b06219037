"""The roles: what one part may ask of another. Parts know these, never each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from simpletuner.errors import Problem
from simpletuner.types import Batch, Size

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Home = Callable[[str], "torch.device"]  # name of a tensor, or path of a packed layer -> where it stays


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


class Block(Protocol):
    """One block of a denoiser as a function of tensors. Blocks of one kind share the function and all shapes."""

    index: int  # among all blocks, in the order in which they run
    kind: str
    function: Callable[..., tuple[Tensor, ...]]  # (weights, factors, *tensors, *fixed) -> new values of `tensors`
    again: Callable[..., tuple[Tensor, ...]]  # the same gradients, values left undefined: for recomputation

    @property
    def weights(self) -> Any: ...  # pytree of its frozen tensors, wherever they lie
    def rehome(self, weights: Any) -> None: ...  # the same values have moved: whoever holds them holds these now
    def factors(self) -> Any: ...  # pytree of what is trained on it; None where nothing is


class BlockRunner(Protocol):
    """Runs a block: brings its weights, keeps what its backward pass needs or computes it again, compiled or not."""

    def __call__(
        self, block: Block, tensors: tuple[Tensor, ...], fixed: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, ...]: ...


class Unfilled(NamedTuple):
    """A part of a model that is built without memory and about to get its weights."""

    name: str  # as the family calls it
    module: nn.Module
    fingerprint: str  # of its files and its configuration
    fill: Callable[..., None]  # fill(device=, pack=, home=): the tensors of its files into the module
    open: Callable[[Any], nn.Module] | None = None  # the library's own loading, with its configuration of quantising


class Quantizer(Protocol):
    """Keeps the matrices of one part of a model in fewer bits."""

    kind: str
    notices: list[Problem]  # what there is to tell after a load

    def kept(self, fingerprint: str) -> bool: ...  # whether the next load quantises nothing
    def load(self, part: Unfilled, device: torch.device, home: Home | None = None) -> None: ...  # frozen, on `home`


class Functional(Protocol):
    """A denoiser that runs block by block. Both runners may be replaced; at first they are plain."""

    blocks: Sequence[Block]
    modulations: Sequence[Block]  # one for each block, computed once a step; frozen unless they are adapted
    runner: BlockRunner
    prologue: BlockRunner  # of the modulations

    @property
    def order(self) -> Sequence[Block]: ...  # modulations and blocks as a forward pass runs them

    @property
    def functions(self) -> Mapping[str, Callable[..., tuple[Tensor, ...]]]: ...  # of the blocks, to be compiled


class ModelFamily(Protocol):
    """What training needs to know about an architecture. Large parts are loaded one at a time and passed in."""

    objective: Objective
    alignment: int  # image edges are multiples of it, in pixels
    latent_factor: int  # pixels per latent cell along an edge
    latent_channels: int
    tiling: bool  # whether the options have the VAE work in tiles
    vae_tile: int  # edge of a tile, in pixels

    def vae_fingerprint(
        self, tiling: bool = False
    ) -> str: ...  # sha256 hex over weights, config, precision and tiling, asked for here or there: names the latents
    def text_fingerprint(self) -> str: ...  # the same over encoders, tokenizers and length
    def load_vae(self, device: Any, tiling: bool = False) -> nn.Module: ...
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
    def conditions(self, batch: Batch) -> dict[str, Tensor]: ...  # (B, ...), on the CPU; goes into batch.text
    def functional(self, denoiser: nn.Module, low_rank: Any, attention: Any) -> Functional: ...  # from now on
    def predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor: ...  # same shape as x_t
    def sampler(self, denoiser: nn.Module, within: Callable[[], AbstractContextManager[None]]) -> Sampler: ...


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
    def low_rank(self) -> Mapping[str, Callable[[], Any]] | None: ...  # module -> its factors now; None: needs modules
    def scaled(self, strength: float) -> AbstractContextManager[None]: ...
    def state(self) -> dict[str, Tensor]: ...  # exact training weights, as stored
    def load_state(self, tensors: Mapping[str, Tensor]) -> None: ...
    def summary(self) -> str: ...  # what is trained, in a few words
    def facts(self) -> dict[str, Any]: ...  # its settings, for manifests and metadata
    def export(self, folder: Path, metadata: Mapping[str, str]) -> Path: ...  # what other tools read: a file, a folder
    def check(self, file: Path) -> list[str]: ...  # what is wrong with what `export` wrote; empty if it holds


@runtime_checkable
class StartsState(Protocol):
    """An optimizer that makes its own state of a parameter, so that a saved one is put back into the same places."""

    def start(self, p: Tensor) -> None: ...  # as before the parameter's first update


@runtime_checkable
class CountsInGroups(Protocol):
    """An optimizer that keeps what moves in its groups, not only beside each parameter."""

    def counts(self) -> list[dict[str, Any]]: ...  # of each group, as JSON has it
    def count_from(self, counts: Sequence[Mapping[str, Any]]) -> None: ...
