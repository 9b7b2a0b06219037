"""The flow-matching objective: a straight line from image to noise, and its velocity as the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def _column(t: Tensor, like: Tensor) -> Tensor:
    return t.to(like.device).reshape(-1, *[1] * (like.ndim - 1))  # (B, 1, 1, 1)


class FlowMatching:
    """x_t = (1 - t) x_0 + t noise. t is (B,) in [0, 1] and 1 is noise; everything in fp32."""

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        t = _column(t, x_0)
        return (1 - t) * x_0 + t * noise

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The velocity dx_t/dt, the same at every t."""
        return noise - x_0
