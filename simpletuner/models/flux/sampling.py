"""Images from a Flux: flow-match Euler steps with the denoiser that is being trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from simpletuner.diffusion.times import ShiftCurve, shifted
from simpletuner.protocols import SampleRequest

if TYPE_CHECKING:
    from simpletuner.models.flux.family import Flux


def sigmas(steps: int, tokens: int, scheduler: Mapping[str, Any], curve: ShiftCurve) -> list[float]:
    """steps + 1 falling times: evenly from 1 to 1/steps, shifted as diffusers' FluxPipeline does, then 0."""
    s = curve.shift(tokens) if scheduler.get("use_dynamic_shifting") else scheduler.get("shift", 1.0)
    return [shifted(1 - i / steps, s) for i in range(steps)] + [0.0]


class FluxEuler:
    """Makes latents and pictures. Adds no weights, and leaves the denoiser in the mode in which it found it."""

    def __init__(self, family: Flux, denoiser: Any, within: Callable[[], AbstractContextManager[None]]):
        self.family, self.denoiser, self.within = family, denoiser, within
        self.scheduler, self.curve = family.weights.config("scheduler"), family.shift_curve()

    @torch.no_grad()
    def latents(self, request: SampleRequest) -> Tensor:
        """(1, C, H, W) fp32 from the request's noise. Real CFG, if above 1, runs from step `skip_real_steps` on."""
        # Each module its own mode: the base stands still, while the dropout of an adapter inside it is at work.
        training = [module for module in self.denoiser.modules() if module.training]
        self.denoiser.eval()
        try:
            with self.within():
                return self._integrate(request)
        finally:
            for module in training:
                module.training = True

    def _integrate(self, request: SampleRequest) -> Tensor:
        x = request.noise.to(next(self.denoiser.parameters()).device, torch.float32)
        times = sigmas(request.steps, self.family.shift_tokens(*x.shape[-2:]), self.scheduler, self.curve)
        real = request.guidance_real if request.negative is not None else 1.0
        for step, (sigma, after) in enumerate(zip(times, times[1:], strict=False)):
            v = self._velocity(x, sigma, request.text, request.guidance)
            if real > 1 and step >= request.skip_real_steps:
                negative = self._velocity(x, sigma, request.negative or {}, request.guidance)
                v = negative + real * (v - negative)
            x = x + (after - sigma) * v
        return x

    def _velocity(self, x: Tensor, sigma: float, text: Mapping[str, Tensor], guidance: float) -> Tensor:
        t = torch.full((len(x),), sigma, dtype=torch.float32)
        told = torch.full((len(x),), guidance, device=x.device)
        return self.family.velocity(self.denoiser, x, t, text, told).float()

    @torch.no_grad()
    def decode(self, vae: Any, latents: Tensor) -> Image.Image:
        """The picture of one latent (1, C, H, W), on whatever device the VAE is."""
        weight = next(vae.parameters())
        z = latents.to(weight.device, torch.float32) / vae.config.scaling_factor + vae.config.shift_factor
        pixels = vae.decode(z.to(weight.dtype), return_dict=False)[0]  # (1, 3, h, w), about [-1, 1]
        values = (pixels[0].float().permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255  # (h, w, 3)
        return Image.fromarray(values.round().to(torch.uint8).cpu().numpy())
