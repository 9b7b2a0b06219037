"""Activation checkpointing: blocks keep their input only and are run again in the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from simpletuner.memory.activations import ActivationStore, Kept


def recompute(blocks: Sequence[nn.Module], interval: int = 1, store: ActivationStore | None = None) -> list[nn.Module]:
    """Makes every `interval`-th block, from the first, recompute itself in the backward pass; returns those blocks.

    store: where their inputs wait; on the device unless it is given. This is for modules as they are: `runner` does the
    same for blocks as functions. It acts only where gradients are on, so sampling is untouched. On a CPU the results
    are equal to the bit.
    """
    chosen = [block for index, block in enumerate(blocks) if index % interval == 0]
    for block in chosen:
        block.forward = _recomputed(block, block.forward, store)  # type: ignore[method-assign]
    return chosen


def _draws(block: nn.Module) -> bool:
    return any(isinstance(m, _DropoutNd) and m.training and m.p > 0 for m in block.modules())


def _recomputed(block: nn.Module, forward: Callable[..., Any], store: ActivationStore | None) -> Callable[..., Any]:
    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        flat, tree = tree_flatten((args, kwargs))

        def run(*leaves: Any) -> Any:
            args, kwargs = tree_unflatten(leaves, tree)
            return forward(*args, **kwargs)

        with _parked(store):  # which sees what `checkpoint` keeps: tensors among its positional arguments
            # Keeping the generators' state costs a device read per block, so only where dropout must repeat.
            return checkpoint(run, *flat, use_reentrant=False, preserve_rng_state=_draws(block))

    return wrapped


def _parked(store: ActivationStore | None) -> AbstractContextManager[Any]:
    if store is None or isinstance(store, Kept):
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: store.keep([tensor]), lambda t: store.take(t)[0])
