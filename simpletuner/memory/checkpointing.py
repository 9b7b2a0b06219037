"""Activation checkpointing: blocks keep their input only and are run again in the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint


def recompute(blocks: Sequence[nn.Module], interval: int = 1) -> list[nn.Module]:
    """Makes every `interval`-th block, from the first, recompute itself in the backward pass; returns those blocks.

    It acts only where gradients are on, so sampling is untouched. On a CPU the results are equal to the bit.
    """
    chosen = [block for index, block in enumerate(blocks) if index % interval == 0]
    for block in chosen:
        block.forward = _recomputed(block, block.forward)  # type: ignore[method-assign]
    return chosen


def _draws(block: nn.Module) -> bool:
    return any(isinstance(m, _DropoutNd) and m.training and m.p > 0 for m in block.modules())


def _recomputed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Keeping the generators' state costs a device read per block, so only where dropout must repeat.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=_draws(block), **kwargs)

    return wrapped
