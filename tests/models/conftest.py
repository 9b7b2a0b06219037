"""A tiny Flux on disk, and families over it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_flux import build

from simpletuner.models import families
from simpletuner.models.flux.family import Flux
from simpletuner.models.flux.options import FluxOptions
from simpletuner.models.options import Model


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory, monkeypatch):
    """Hashes are remembered in a folder of the test session's."""
    monkeypatch.setenv("SIMPLETUNER_STATE_DIR", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[bool, Path]:
    """guidance -> model folder: the shapes of dev (2 + 3 blocks) and of schnell."""
    root = tmp_path_factory.mktemp("tiny")
    return {
        True: build(root / "dev", guidance=True, layers=(2, 3)),
        False: build(root / "schnell", guidance=False, layers=(1, 1)),
    }


@pytest.fixture
def make():
    """Builds a family over a folder: make(folder, flavour, FluxOptions keys..., Model keys...)."""

    def build_family(
        folder: Path | str, flavour: str = "nano", flux: dict | None = None, seed: int = 1, **model
    ) -> Flux:
        return Flux(
            Model(pretrained_model_name_or_path=str(folder), **model),
            FluxOptions(**(flux or {})),
            flavour=families()["flux"].flavour(flavour),
            dtype=torch.float32,
            base_dtype=torch.float32,
            vae_dtype=torch.float32,
            seed=seed,
        )

    return build_family
