"""A tiny transformer on disk, wide enough for every kind, and what fills modules from it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import tiny_flux
import torch
from diffusers import FluxTransformer2DModel

from simpletuner.models import families
from simpletuner.models.stream import fill
from simpletuner.protocols import Unfilled
from simpletuner.quantization.packer import Packer

KEEP = families()["flux"].keep_precise
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def plain():
    """Width 128: one group of weights in each row of most layers, three in others."""
    return tiny_flux.transformer(head_width=64)


@pytest.fixture(scope="session")
def folder(plain, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("transformer")
    plain.save_pretrained(path)
    return path


@pytest.fixture
def part(plain, folder):
    """part(): the transformer without memory, about to be filled from its files."""

    def made(where: Path = folder, fingerprint: str = "source", dtype: torch.dtype = torch.float32) -> Unfilled:
        with torch.device("meta"):
            module = FluxTransformer2DModel.from_config(plain.config)
        files = sorted(where.glob("*.safetensors"))

        def open(configuration):
            return FluxTransformer2DModel.from_pretrained(where, quantization_config=configuration, torch_dtype=dtype)

        return Unfilled("transformer", module, fingerprint, partial(fill, module, files, dtype=dtype), open)

    return made


@pytest.fixture
def loaded(part):
    """loaded(kind, ...): the transformer with packed weights, and the packer that made them."""

    def load(kind: str, dtype: torch.dtype = torch.float32, **settings):
        packer = Packer(kind, dtype, keep=KEEP, **settings)
        made = part(dtype=dtype)
        packer.load(made, CPU)
        return made.module.requires_grad_(False).eval(), packer

    return load
