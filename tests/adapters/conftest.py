"""A tiny real transformer and inputs for it."""

from __future__ import annotations

import pytest
import torch
from tiny_flux import transformer


@pytest.fixture
def denoiser():
    """1 double and 2 single blocks, frozen."""
    return transformer(layers=(1, 2)).requires_grad_(False)


@pytest.fixture
def inputs() -> dict:
    numbers = torch.Generator().manual_seed(5)
    return {
        "hidden_states": torch.randn(2, 6, 64, generator=numbers),
        "encoder_hidden_states": torch.randn(2, 5, 32, generator=numbers),
        "pooled_projections": torch.randn(2, 16, generator=numbers),
        "timestep": torch.tensor([0.3, 0.8]),
        "guidance": torch.tensor([1.0, 3.5]),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(5, 3),
        "return_dict": False,
    }
