"""How large many tensors are together, in a few launches; the plain twin is in `training.gradients`. Needs Triton."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from simpletuner.kernels.device import runs_triton
from simpletuner.kernels.tables import Addresses, Blocks, capturing

LENGTH = 8192  # numbers of a block
DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@triton.jit
def _blocks(
    addresses, sizes, owners, indices, squares, peaks, DTYPE: tl.constexpr, EVEN: tl.constexpr, LENGTH: tl.constexpr
):
    """Sum of squares and largest absolute value of each block."""
    block = tl.program_id(0)
    tensor = tl.load(owners + block)
    size = tl.load(sizes + tensor)
    address = tl.load(addresses + tensor).to(tl.pointer_type(DTYPE))
    if EVEN:
        size = tl.multiple_of(size, 16)
        address = tl.multiple_of(address, 16)
    at = tl.load(indices + block).to(tl.int64) * LENGTH + tl.arange(0, LENGTH)
    x = tl.load(address + at, mask=at < size, other=0.0).to(tl.float32)
    tl.store(squares + block, tl.sum(x * x))
    tl.store(peaks + block, tl.max(tl.abs(x)))


def usable(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernel can read these: one device, one dtype, no gaps. Triton's interpreter runs on the CPU."""
    device, dtype = tensors[0].device, tensors[0].dtype
    known = runs_triton(device) and dtype in DTYPES
    return known and all(t.device == device and t.dtype == dtype and t.is_contiguous() for t in tensors)


class Measure:
    """The tables of some tensors, and the launches that measure them. They are made outside a CUDA graph."""

    def __init__(self, tensors: Sequence[Tensor]):
        device = tensors[0].device
        assert not capturing(device), "measure once before a CUDA graph records it"
        self.sizes = [t.numel() for t in tensors]
        self.blocks = Blocks(self.sizes, LENGTH, device)
        self.addresses = Addresses(device)
        self.squares, self.peaks = torch.empty(2, self.blocks.count, device=device).unbind()

    def serves(self, tensors: Sequence[Tensor]) -> bool:
        return self.addresses.device == tensors[0].device and self.sizes == [t.numel() for t in tensors]

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """(2,) fp32 on the device: 2-norm over all elements, largest absolute value."""
        table, blocks = self.addresses.of(tensors), self.blocks
        even = self.addresses.aligned and blocks.even
        _blocks[(blocks.count,)](
            table, blocks.sizes, blocks.owners, blocks.indices, self.squares, self.peaks,
            DTYPE=DTYPES[tensors[0].dtype], EVEN=even, LENGTH=LENGTH, num_warps=8,
        )  # fmt: skip
        return torch.stack([self.squares.sum().sqrt(), self.peaks.max()])
