"""The forward pass of training and sampling: functional blocks over the weights that diffusers' module holds.

The module stays the container: it is loaded, adapted and exported as ever, and its own forward is the plain twin.
Where a block's weights come from, what is kept for its backward pass and what is compiled is the runners' business.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simpletuner.kernels import weights as kept
from simpletuner.kernels.attention import Attention
from simpletuner.kernels.lora import Linear, LowRank
from simpletuner.models.flux.blocks import (
    DoubleWeights,
    Side,
    SingleWeights,
    double_block,
    double_block_again,
    modulation,
    single_block,
    single_block_again,
)
from simpletuner.protocols import Block, BlockRunner

Function = Callable[..., tuple[Tensor, ...]]
Factors = Mapping[str, Callable[[], LowRank | None]]  # path of a module -> what is trained on it now
IMAGE = (("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.to_out.0",), ("ff.net.0.proj",), ("ff.net.2",))
TEXT = (
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    ("attn.to_add_out",),
    ("ff_context.net.0.proj",),
    ("ff_context.net.2",),
)
SINGLE = (("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), ("proj_out",))
DOUBLE_NORMS = ("attn.norm_q", "attn.norm_k", "attn.norm_added_q", "attn.norm_added_k")
SINGLE_NORMS = ("attn.norm_q", "attn.norm_k")


def joined(denoiser: Any) -> Iterator[list[str]]:
    """Paths of the layers that are used as one matrix."""
    for stack, groups in (("transformer_blocks", (*IMAGE, *TEXT)), ("single_transformer_blocks", SINGLE)):
        for index in range(len(getattr(denoiser, stack))):
            yield from ([f"{stack}.{index}.{name}" for name in group] for group in groups if len(group) > 1)


class Joined:
    """Linear layers that read the same input, kept as one matrix; the modules hold views of its rows."""

    def __init__(self, modules: Sequence[nn.Module]):
        self.modules: list[Any] = [getattr(module, "base_layer", module) for module in modules]  # beneath PEFT's layers
        parts = [kept.weight_of(module) for module in self.modules]
        biases: list[Any] = [module.bias for module in self.modules]
        bias = None if biases[0] is None else torch.cat([b.detach() for b in biases])
        self.home(Linear(parts[0] if len(parts) == 1 else kept.join(parts), bias))

    def home(self, linear: Linear) -> None:
        """Makes the modules hold what `linear` holds."""
        self.linear, start = linear, 0
        for module in self.modules:
            stop = start + module.out_features
            weight = linear.weight.rows(start, stop)
            if isinstance(weight, kept.Plain):
                module.weight.data = weight.weight
            else:
                module.packed = weight
            if linear.bias is not None:
                module.bias.data = linear.bias[start:stop]
            start = stop


class FluxBlock:
    """One block: its layers in the order and grouping in which its function wants them. Fulfils protocols.Block."""

    def __init__(
        self,
        kind: str,
        index: int,
        function: Function,
        again: Function,
        shape: Callable[[Iterable[Any], Sequence[Any]], Any],  # joined layers, norms -> the tree of weights
        groups: Sequence[Sequence[nn.Module]],
        norms: Sequence[Any],
        factors: Callable[[], Any],
    ):
        self.kind, self.index, self.function, self.again, self.factors = kind, index, function, again, factors
        self._shape = shape
        self._groups, self._norms = [Joined(group) for group in groups], list(norms)

    @property
    def weights(self) -> Any:
        return self._shape([group.linear for group in self._groups], [norm.weight.detach() for norm in self._norms])

    def rehome(self, weights: Any) -> None:
        linears, norms = _flat(weights)
        for group, linear in zip(self._groups, linears, strict=True):
            group.home(linear)
        for norm, weight in zip(self._norms, norms, strict=True):
            norm.weight.data = weight


def _flat(weights: Any) -> tuple[list[Linear], list[Tensor]]:
    """The joined layers and the norms of a tree of weights, in order."""
    if isinstance(weights, DoubleWeights):
        return [*weights.image, *weights.text], list(weights.norms)
    if isinstance(weights, SingleWeights):
        return [weights.enter, weights.leave], list(weights.norms)
    return list(weights), []


def _double(linears: Iterable[Any], norms: Sequence[Any]) -> DoubleWeights:
    parts = list(linears)
    return DoubleWeights(Side(*parts[:4]), Side(*parts[4:]), tuple(norms))  # type: ignore[arg-type]


def _single(linears: Iterable[Any], norms: Sequence[Any]) -> SingleWeights:
    return SingleWeights(*linears, tuple(norms))  # type: ignore[arg-type, call-arg]


def _modulated(linears: Iterable[Any], norms: Sequence[Any]) -> tuple[Linear, ...]:
    return tuple(linears)


def plain(block: Block, tensors: tuple[Tensor, ...], fixed: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """The simplest runner: weights are where they are, and autograd keeps what it likes."""
    return block.function(block.weights, block.factors(), *tensors, *fixed)


class FluxForward:
    """Stands in for `FluxTransformer2DModel.forward`: same arguments, same result, same gradients."""

    def __init__(self, denoiser: Any, low_rank: Factors, attention: Attention):
        self.denoiser = denoiser
        self.runner: BlockRunner = plain
        self.prologue: BlockRunner = plain  # of the modulations, each computed once a step, before its block
        self.blocks: list[FluxBlock] = []
        self.modulations: list[FluxBlock] = []
        double = [functools.partial(function, attention) for function in (double_block, double_block_again)]
        single = [functools.partial(function, attention) for function in (single_block, single_block_again)]
        for index, block in enumerate(denoiser.transformer_blocks):
            path = f"transformer_blocks.{index}"
            self._add("double", block, path, double, (*IMAGE, *TEXT), DOUBLE_NORMS, low_rank)
            self._modulate("double modulation", block, path, ("norm1.linear", "norm1_context.linear"), low_rank)
        for index, block in enumerate(denoiser.single_transformer_blocks):
            path = f"single_transformer_blocks.{index}"
            self._add("single", block, path, single, SINGLE, SINGLE_NORMS, low_rank)
            self._modulate("single modulation", block, path, ("norm.linear",), low_rank)

    @property
    def order(self) -> list[FluxBlock]:
        """Modulations and blocks as a forward pass runs them."""
        return [one for pair in zip(self.modulations, self.blocks, strict=True) for one in pair]

    @property
    def functions(self) -> dict[str, Function]:
        """What there is to compile, by the names under which a runner takes it."""
        own = {block.kind: block.function for block in self.blocks}
        return own | {f"{block.kind} again": block.again for block in self.blocks}

    def _add(
        self,
        kind: str,
        block: nn.Module,
        path: str,
        functions: Sequence[Function],  # in the forward pass, and again in the backward pass
        groups: Sequence[Sequence[str]],
        norms: Sequence[str],
        low_rank: Factors,
    ) -> None:
        getters = [[low_rank.get(f"{path}.{name}", _nothing) for name in group] for group in groups]

        def factors() -> Any:
            found = [tuple(get() for get in group) for group in getters]
            return (Side(*found[:4]), Side(*found[4:])) if kind == "double" else tuple(found)

        modules = [[block.get_submodule(name) for name in group] for group in groups]
        shape = _double if kind == "double" else _single
        held = [block.get_submodule(name) for name in norms]
        self.blocks.append(FluxBlock(kind, len(self.blocks), functions[0], functions[1], shape, modules, held, factors))

    def _modulate(self, kind: str, block: nn.Module, path: str, names: Sequence[str], low_rank: Factors) -> None:
        getters = [low_rank.get(f"{path}.{name}", _nothing) for name in names]
        modules = [[block.get_submodule(name)] for name in names]
        self.modulations.append(
            FluxBlock(
                kind,
                len(self.modulations),
                modulation,
                modulation,
                _modulated,
                modules,
                (),
                lambda: tuple((get(),) for get in getters),
            )
        )

    def __call__(
        self,
        hidden_states: Tensor,  # (B, image tokens, channels)
        encoder_hidden_states: Tensor,  # (B, text tokens, T5 width)
        pooled_projections: Tensor,  # (B, CLIP width)
        timestep: Tensor,  # (B,) in [0, 1]
        img_ids: Tensor,  # (image tokens, 3)
        txt_ids: Tensor,  # (text tokens, 3)
        guidance: Tensor | None = None,  # (B,)
        attention_mask: Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """((B, image tokens, channels),): the velocity."""
        assert not return_dict
        denoiser = self.denoiser
        image, text = denoiser.x_embedder(hidden_states), denoiser.context_embedder(encoder_hidden_states)
        told = [(timestep.to(hidden_states.dtype) * 1000)]
        if guidance is not None:
            told.append(guidance.to(hidden_states.dtype) * 1000)
        time = denoiser.time_text_embed(*told, pooled_projections)  # (B, D)
        with torch.autocast(image.device.type, enabled=False):
            x = self._run(image, text.to(image.dtype), time, self._positions(txt_ids, img_ids), attention_mask)
        return (denoiser.proj_out(denoiser.norm_out(x[:, text.shape[1] :], time)),)

    def _positions(self, txt_ids: Tensor, img_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (S, head width / 2), fp32."""
        with torch.no_grad():
            cos, sin = self.denoiser.pos_embed(torch.cat([txt_ids, img_ids]))  # each number twice, for a pair
            return cos[:, ::2].contiguous().float(), sin[:, ::2].contiguous().float()

    def _run(
        self, image: Tensor, text: Tensor, time: Tensor, positions: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> Tensor:
        """(B, S, D), text tokens first, after all blocks."""
        silu = F.silu(time).to(image.dtype)
        tensors: tuple[Tensor, ...] = (image, text)
        if torch.is_grad_enabled():  # in the first block too, which is then compiled as all others are
            tensors = tuple(one if one.requires_grad else one.detach().requires_grad_() for one in tensors)
        for shifting, block in zip(self.modulations, self.blocks, strict=True):
            (shifts,) = self.prologue(shifting, (), (silu,))
            if block.kind == "single" and len(tensors) == 2:  # from here on, one stream
                tensors = (torch.cat([tensors[1], tensors[0]], 1),)
            tensors = self.runner(block, tensors, (shifts, *positions, mask))
        return tensors[0] if len(tensors) == 1 else torch.cat([tensors[1], tensors[0]], 1)


def _nothing() -> None:
    return None
