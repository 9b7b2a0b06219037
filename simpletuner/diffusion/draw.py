"""Addressed randomness: a number is a pure function of its address, so a resumed run draws what a straight one does."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def draw(*address: object) -> int:
    """A whole number in [0, 2**64): the first 8 bytes of SHA-256 over `simpletuner/1|part|...` (data.md section 9)."""
    text = "simpletuner/1|" + "|".join(str(part) for part in address)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def uniform(*address: object) -> float:
    """A number in [0, 1): the top 53 bits of draw(address)."""
    return (draw(*address) >> 11) * 2.0**-53


def integer(below: int, *address: object) -> int:
    """A whole number in [0, below)."""
    return int(uniform(*address) * below)


def generator(*address: object, device: str = "cpu") -> torch.Generator:
    """A torch generator seeded by the address, for whole tensors."""
    import torch

    return torch.Generator(device).manual_seed(draw(*address) & (2**63 - 1))


def normal(shape: tuple[int, ...], *address: object) -> Tensor:
    """Standard normal fp32 tensor of `shape`, drawn on the CPU so that it is the same for every device."""
    import torch

    return torch.randn(shape, generator=generator(*address), dtype=torch.float32)
