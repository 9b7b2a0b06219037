"""RMS norms under autocast, which lowers the weights of linear layers to its precision and passes norms over."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn


def follow_input(module: nn.Module) -> None:
    """Makes every RMS norm below use its weight in the precision of its input.

    With an fp32 weight and a 16-bit input torch (2.13) warns and takes five kernels in place of one.
    """
    for norm in module.modules():
        if isinstance(norm, nn.RMSNorm):
            norm.forward = functools.partial(_normalised, norm)  # type: ignore[method-assign]


def _normalised(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """(..., D) in the dtype of x."""
    weight = None if norm.weight is None else norm.weight.to(x.dtype)
    return torch.nn.functional.rms_norm(x, norm.normalized_shape, weight, norm.eps)
