"""Small datasets and stand-in encoders for the data tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from simpletuner.data.cache import TensorCache
from simpletuner.data.datasets import Datasets, load
from simpletuner.data.fill import Encoders, Images, Latents, fill_latents, fill_text
from simpletuner.data.library import Library, open_library
from simpletuner.data.loader import Loader
from simpletuner.data.options import Data
from simpletuner.events import EventLog
from simpletuner.types import Progress


def save_image(path: Path, width: int = 100, height: int = 80, colour: tuple[int, ...] = (200, 30, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)


def tree_hash(folder: Path) -> str:
    """One hash over names, bytes and times of everything below a folder."""
    lines = []
    for path in sorted(folder.rglob("*")):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        lines.append(f"{path.relative_to(folder)} {path.stat().st_mtime_ns} {content}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class SmallVae(nn.Module):
    """Four channels at an eighth of the edge."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, stride=8)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.conv(pixels)


class World:
    """One run's data, with counters of everything that is expensive."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.events = EventLog(None)
        self.seen: list[Any] = []
        self.events.subscribe(self.seen.append)
        self.options = Data(resolution=64)
        self.vae_loads = self.text_loads = self.images_encoded = self.texts_encoded = 0
        torch.manual_seed(0)
        self.vae = SmallVae()

    def write(self, *entries: dict[str, Any]) -> Path:
        path = self.folder / "data.json"
        path.write_text(json.dumps([{"type": "local", **entry} for entry in entries]))
        return path

    def load(self, *entries: dict[str, Any], alignment: int = 16) -> tuple[Datasets | None, list]:
        path = self.write(*entries)
        return load(path, self.options, family="flux", alignment=alignment, output_dir=self.folder / "out")

    def open(self, *entries: dict[str, Any], batch: int = 1, accumulation: int = 1, ranks: int = 1) -> Library:
        datasets, problems = self.load(*entries)
        assert datasets, problems
        self.datasets = datasets
        return open_library(
            datasets, self.options, batch_size=batch, accumulation=accumulation, ranks=ranks, events=self.events
        )

    def encode_images(self, vae: nn.Module, pixels: Tensor, noise: Tensor | None) -> Tensor:
        self.images_encoded += len(pixels)
        assert noise is not None
        return vae(pixels) + 0.1 * noise

    def encode_text(self, encoders: Any, captions: Any) -> dict[str, Tensor]:
        self.texts_encoded += len(captions)
        codes = torch.tensor([[float(ord(c)) for c in f"{caption:4.4}"] for caption in captions])
        return {"t5": codes[:, :, None].repeat(1, 1, 2), "t5_mask": torch.ones(len(captions), 4, dtype=torch.long)}

    def load_vae(self) -> nn.Module:
        self.vae_loads += 1
        return self.vae

    def load_encoders(self) -> str:
        self.text_loads += 1
        return "encoders"

    def fill(self, library: Library, encode: Callable | None = None) -> tuple[dict[str, Latents], TensorCache]:
        texts = TensorCache.at(self.datasets.text.cache, "e" * 64, "text")
        encoders = Encoders(self.load_encoders, self.encode_text)
        fill_text(texts, library.captions(), encoders, batch_size=2, events=self.events)
        images = Images(self.load_vae, encode or self.encode_images, "f" * 64, channels=4, factor=8)
        return fill_latents(library, images, events=self.events), texts

    def loader(self, library: Library, progress: Progress, seed: int = 1, rank: int = 0, ranks: int = 1) -> Loader:
        latents, texts = self.fill(library)
        return Loader(
            library, latents, texts, options=self.options, seed=seed, progress=progress, rank=rank, ranks=ranks
        )

    def counts(self) -> dict[str, int]:
        return {
            "vae_loads": self.vae_loads,
            "text_loads": self.text_loads,
            "images": self.images_encoded,
            "texts": self.texts_encoded,
        }


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Any]:
    """Six pictures of two shapes in a folder, and their dataset entry."""
    for number in range(6):
        size = (120, 60) if number % 2 else (80, 80)
        save_image(tmp_path / "images" / f"a_cat_{number}.png", *size, colour=(40 * number, 90, 200))
    return {"id": "cats", "instance_data_dir": str(tmp_path / "images")}
