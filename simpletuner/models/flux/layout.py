"""How Flux lays a latent out as tokens: patches of 2x2 cells, and a position for each."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H/2 * W/2, 4C); H and W even."""
    b, c, h, w = latents.shape
    patches = latents.reshape(b, c, h // 2, 2, w // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, H/2 * W/2, 4C) -> (B, C, H, W): the exact inverse of pack."""
    b, _, c = tokens.shape
    patches = tokens.reshape(b, height // 2, width // 2, c // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, height, width)


def image_ids(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """(H/2 * W/2, 3) fp32: 0, row, column of each token of a latent of H x W."""
    rows = torch.arange(height // 2, dtype=torch.float32, device=device)
    columns = torch.arange(width // 2, dtype=torch.float32, device=device)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3)


def text_ids(length: int, device: torch.device | None = None) -> Tensor:
    """(L, 3) fp32 zeros: text has no place."""
    return torch.zeros(length, 3, dtype=torch.float32, device=device)
