"""A painter in place of Flux: a tiny denoiser with an adapter and a tiny decoder, real modules both."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from simpletuner.events import EventLog
from simpletuner.types import Prompt
from simpletuner.validation.options import Validation
from simpletuner.validation.run import ValidationRun
from simpletuner.validation.shots import Defaults


class TinyAdapter:
    kind = "lora"

    def __init__(self) -> None:
        self.weight, self.strength = nn.Parameter(torch.zeros(4)), 1.0

    @contextlib.contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        before, self.strength = self.strength, strength
        try:
            yield
        finally:
            self.strength = before

    def disabled(self):
        return self.scaled(0.0)

    def parameters(self) -> dict:
        return {"weight": self.weight}


class Painter:
    """A sampler whose picture depends on noise, text, steps and adapter. `room` is its memory, in latent cells."""

    def __init__(self, adapter: TinyAdapter) -> None:
        self.adapter, self.requests, self.room, self.room_for_decode = adapter, [], 10**9, {}
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def latents(self, request) -> torch.Tensor:
        self.requests.append(request)
        random.random(), np.random.rand(), torch.rand(3)  # samplers may draw from the global generators
        if request.noise[0, 0].numel() > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        x = request.noise
        for _ in range(request.steps):
            x = 0.7 * x + 0.3 * torch.tanh(self.conv(x)) + 0.1 * request.text["t5"].mean()
        return x + (self.adapter.weight * self.adapter.strength).view(1, 4, 1, 1)

    def decode(self, vae, latents) -> Image.Image:
        mode = "cpu" if vae.moved else "tiled" if vae.use_tiling else "whole"
        if latents[0, 0].numel() > self.room_for_decode.get(mode, 10**9):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        pixels = vae(latents).clamp(-1, 1)
        return Image.fromarray(((pixels[0] + 1) * 127.5).byte().permute(1, 2, 0).numpy())


class TinyDecoder(nn.Module):
    """1/8 scale latents to pixels, with the switches of a VAE."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 3, 8, stride=8)
        self.use_tiling, self.tile_sample_min_size, self.tile_latent_min_size, self.moved = False, 1024, 128, False

    def to(self, device=None, dtype=None):  # the only device in a test is the CPU: remember being sent there
        self.moved = not self.moved
        return super().to(device, dtype)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.up(latents))


class Studio:
    """A ValidationRun and all it stands on."""

    def __init__(self, output_dir: Path) -> None:
        torch.manual_seed(0)
        self.output_dir = output_dir
        self.adapter = TinyAdapter()
        self.sampler = Painter(self.adapter)
        self.vae = TinyDecoder()
        self.vae_loads, self.order, self.stop_after = 0, [], 10**9
        self.prompts = [Prompt("unconditional", ""), Prompt("chef", "a chef")]
        self.events: EventLog | None = None

    def embed(self, text: str) -> dict:
        return {"t5": torch.full((1, 2, 3), float(len(text)))}

    def load_vae(self) -> nn.Module:
        self.vae_loads += 1
        return self.vae

    def run(self, prompts=None, base_id="base/fp32", base_stays=True, **options) -> ValidationRun:
        """A fresh run on the same folder, as a new process would make it."""
        options.setdefault("validation_resolution", "64x64")
        self.events, self.seen = EventLog(self.output_dir), []
        self.events.subscribe(self.seen.append)
        return ValidationRun(
            options=Validation(**options), prompts=self.prompts if prompts is None else prompts, sampler=self.sampler,
            load_vae=self.load_vae, free=lambda: None, embed=self.embed, adapter=self.adapter,
            latent_shape=lambda size: (1, 4, size.height // 8, size.width // 8), output_dir=self.output_dir,
            events=self.events,
            seed=42, defaults=Defaults(3, 3.5, 1.0), base_id=base_id, facts={"sampler": "euler"},
            stopping=lambda: len(self.sampler.requests) >= self.stop_after, base_stays=base_stays,
        )  # fmt: skip

    def warnings(self) -> list[str]:
        return [event.data["message"] for event in self.seen if event.type == "warning"]

    def files(self, folder: str) -> list[str]:
        return sorted(p.name for p in (self.output_dir / folder).glob("*"))


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(tmp_path)
