"""Errors of a prediction, one number a sample, in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """(B,): mean of the squared difference over everything but the batch."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)
