"""Where a block runs: its weights come, its function is called, and what the backward pass needs is kept or made anew.

A recomputed block keeps its inputs only. Its backward pass fetches the weights once more, runs the function again and
goes back through it at once, so that one transfer serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from simpletuner.memory.activations import ActivationStore, Kept
from simpletuner.memory.residency import Residency, Resident
from simpletuner.protocols import Block

Function = Callable[..., tuple[Tensor, ...]]


class Runner:
    """Runs the blocks of a model in their order. Output and gradients are those of the plain functions.

    interval: every n-th block is recomputed, from the first; 0 for none. A block that moves is recomputed in any case,
    or autograd would keep its slot. functions: what runs the blocks of a kind instead of their own function; as
    `<kind> again`, instead of `again`.
    """

    def __init__(
        self,
        interval: int = 0,
        *,
        residency: Residency | None = None,
        store: ActivationStore | None = None,
        functions: Mapping[str, Function] | None = None,
    ):
        self.interval = interval
        self.residency: Residency = residency or Resident()
        self.store: ActivationStore = store or Kept()
        self.functions = dict(functions or {})
        self.num_recomputed = 0  # since the runner was made

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph may contain the passes."""
        return self.residency.capturable

    @contextmanager
    def sparing(self) -> Iterator[None]:
        """Within it every block is recomputed.

        Uncompiled functions keep more than compiled ones, and a run that fits with the latter should not end at its
        first, plain step.
        """
        interval, self.interval = self.interval, 1
        try:
            yield
        finally:
            self.interval = interval

    def recomputes(self, block: Block) -> bool:
        return bool(self.interval and block.index % self.interval == 0) or self.residency.moves(block)

    def __call__(
        self, block: Block, tensors: tuple[Tensor, ...], fixed: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, ...]:
        function = self.functions.get(block.kind, block.function)
        if torch.is_grad_enabled() and self.recomputes(block):
            again = self.functions.get(f"{block.kind} again", block.again if function is block.function else function)
            call = _Call(self, block, function, again, len(tensors), len(fixed))
            inputs = [*tensors, *fixed, *call.trained]
            if any(isinstance(one, Tensor) and one.requires_grad for one in inputs):
                return _Recomputed.apply(call, *inputs)
        weights = self.residency.fetch(block)
        outputs = function(weights, block.factors(), *tensors, *fixed)
        self.residency.done(block, again=False)
        return outputs


@dataclass
class _Call:
    """One run of a recomputed block: all that both passes need besides activations."""

    runner: Runner
    block: Block
    function: Function
    again: Function
    num_tensors: int
    num_fixed: int
    leaves: list[Any] = field(init=False)  # of the factors
    tree: TreeSpec = field(init=False)
    places: list[int] = field(init=False)  # of the trained ones among the leaves
    precision: Callable[[], AbstractContextManager[Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.leaves, self.tree = tree_flatten(self.block.factors())
        self.places = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        self.precision = _autocast()

    @property
    def trained(self) -> list[Tensor]:
        return [self.leaves[place] for place in self.places]

    def run(
        self, function: Function, weights: Any, trained: Sequence[Tensor], rest: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, trained, strict=True):
            leaves[place] = tensor
        with self.precision():
            return function(weights, tree_unflatten(leaves, self.tree), *rest)


class _Recomputed(torch.autograd.Function):
    """Inputs: a call, its activations, its tables, its trained tensors; the gradients of them all go to autograd."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        runner, block = call.runner, call.block
        split = call.num_tensors + call.num_fixed
        outputs = call.run(call.function, runner.residency.fetch(block), call.trained, inputs[:split])
        runner.residency.done(block, again=True)
        ctx.call, ctx.fixed = call, inputs[call.num_tensors : split]
        ctx.ticket = runner.store.keep(inputs[: call.num_tensors])  # type: ignore[arg-type] # none of them is None
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        call, needed = ctx.call, ctx.needs_input_grad[1:]
        if call is None:
            raise RuntimeError("a recomputed block goes back once: its inputs are gone")
        runner, block = call.runner, call.block
        kept, ctx.ticket, ctx.call = runner.store.take(ctx.ticket), None, None
        inputs = [_leaf(one, need) for one, need in zip((*kept, *ctx.fixed, *call.trained), needed, strict=True)]
        split = call.num_tensors + call.num_fixed
        weights = runner.residency.fetch_again(block)
        with torch.enable_grad():
            outputs = call.run(call.again, weights, inputs[split:], inputs[:split])
        runner.num_recomputed += 1
        wanted = [one for one, need in zip(inputs, needed, strict=True) if need and one is not None]
        pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None and o.requires_grad]
        found = iter(_gradients(pairs, wanted))
        runner.residency.done(block, again=False)
        return None, *(next(found) if need else None for need in needed)


def _gradients(pairs: Sequence[tuple[Tensor, Tensor]], wanted: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not pairs or not wanted:
        return [None] * len(wanted)
    outputs, gradients = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, wanted, gradients, allow_unused=True)


def _leaf(tensor: Tensor | None, needed: bool) -> Tensor | None:
    """The same numbers with no past. A parameter stays itself: compiled functions tell it from another tensor."""
    if tensor is None or tensor.is_leaf and tensor.requires_grad:
        return tensor
    return tensor.detach().requires_grad_(needed)


def _autocast() -> Callable[[], AbstractContextManager[Any]]:
    """Sets the autocasting of now again, elsewhere. Its cache would keep casts made without gradients."""
    kind = "cuda" if torch.is_autocast_enabled("cuda") else "cpu" if torch.is_autocast_enabled("cpu") else None
    if kind is None:
        return nullcontext
    dtype = torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype, cache_enabled=False)
