"""A tiny Flux with an adapter that does something, inputs for it, and what a pass gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tiny_flux
import torch
from torch import Tensor

from simpletuner.adapters.lora import Lora
from simpletuner.adapters.options import Adapter
from simpletuner.models.flux import LORA_TARGETS
from simpletuner.models.flux.layout import image_ids, text_ids

BATCH, TEXT, HEIGHT, WIDTH = 2, 5, 8, 12  # latent cells


def adapted(target: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Lora]:
    """A tiny Flux of 2 + 2 blocks with an adapter whose B is not zero."""
    denoiser = tiny_flux.transformer(layers=(2, 2)).to(dtype).requires_grad_(False)
    return denoiser, attached(denoiser, target, rank=4, dtype=dtype, size=0.1)


def attached(denoiser: Any, target: str, *, rank: int, dtype: torch.dtype, size: float) -> Lora:
    """An adapter inside the denoiser; all its numbers are random, of that size."""
    options = Adapter().model_copy(update={"lora_rank": rank})
    adapter = Lora(options, LORA_TARGETS[target], seed=1, dtype=dtype)
    adapter.attach(denoiser)
    generator = torch.Generator().manual_seed(3)
    for value in adapter.parameters().values():
        value.data = (torch.randn(value.shape, generator=generator) * size).to(value.device, dtype)
    return adapter


def inputs(dtype: torch.dtype = torch.float32, height: int = HEIGHT) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return {
        "hidden_states": draw(BATCH, height * WIDTH // 4, 4 * tiny_flux.CHANNELS),
        "encoder_hidden_states": draw(BATCH, TEXT, tiny_flux.JOINT),
        "pooled_projections": draw(BATCH, tiny_flux.POOLED),
        "timestep": torch.tensor([0.25, 0.8]),
        "guidance": torch.tensor([1.0, 3.5]),  # each sample its own
        "img_ids": image_ids(height, WIDTH),
        "txt_ids": text_ids(TEXT),
    }


def outcome(forward: Callable[..., Any], adapter: Lora, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """What comes out, and the gradients of the adapter for a random weighting of it."""
    for value in adapter.parameters().values():
        value.grad = None
    out = forward(**given, return_dict=False)[0]
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.device, out.dtype)
    (out * weight).sum().backward()
    return out.detach(), {name: value.grad.clone() for name, value in adapter.parameters().items()}


def difference(a: Tensor, b: Tensor) -> float:
    """Relative, in the norm of the whole."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def whole(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten().float() for gradient in gradients.values()])
