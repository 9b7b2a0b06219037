"""A linear layer whose matrix is packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from simpletuner.kernels.product import frozen_product


class PackedLinear(nn.Linear):
    """y = x W^T + b with a packed, frozen W (any of `kernels.weights`), in the precision of x or of autocast.

    `weight` is None: there is no matrix to read. Casts (`.half()`, `.to(dtype)`) leave the packed tensors as they are,
    moves to another device take them along. They are not in the state dict: `quantization.store` writes them.
    """

    def __init__(self, packed: Any, bias: nn.Parameter | None = None):
        nn.Module.__init__(self)  # nn.Linear's own makes a matrix
        self.out_features, self.in_features = packed.shape
        self.packed = packed
        self.register_parameter("weight", None)
        self.register_parameter("bias", bias)

    @property
    def qweight(self) -> Tensor:
        """The codes as bytes, by the name under which PEFT asks where a packed layer lies."""
        return self.packed[0].view(torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return frozen_product(x, self.packed, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        super()._apply(fn, recurse)

        def moved(leaf: Tensor) -> Tensor:
            return leaf.to(fn(torch.empty(0, dtype=torch.uint8, device=leaf.device)).device)

        self.packed = pytree.tree_map_only(Tensor, moved, self.packed)
        return self
