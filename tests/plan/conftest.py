"""What the plans are made of: nano's model, pictures without one, a machine that is only said to exist."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest

from simpletuner.check import Checked, check
from simpletuner.machine import Gpu, Machine

GIB = 2**30


def png(width: int, height: int, grey: int = 0) -> bytes:
    """A picture of one colour, written without a library."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress((b"\0" + bytes([grey]) * width) * height, 1)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def gpu(gib: float, name: str = "NVIDIA RTX 4090", free: float | None = None) -> Gpu:
    return Gpu(0, name, int(gib * GIB), int((gib if free is None else free) * GIB), (8, 9), "570.00")


def machine(*gpus: Gpu, ram_gib: float = 64, cores: int = 2) -> Machine:
    return Machine(gpus, int(ram_gib * GIB), int(ram_gib * GIB), cores)


class Project:
    """A folder with pictures, a dataset file and a configuration."""

    def __init__(self, home: Path):
        self.home, self.pictures = home, home / "pictures"
        self.pictures.mkdir(parents=True)
        self.entry: dict = {"id": "cats", "type": "local", "instance_data_dir": str(self.pictures)}
        self.values: dict = {
            "model_flavour": "nano", "output_dir": str(home / "out"), "max_train_steps": 20, "mixed_precision": "no",
            "optimizer": "torch-adamw", "vae_dtype": "fp32", "data_backend_config": str(home / "datasets.json"),
            "validation_disable": True,
        }  # fmt: skip
        self.entry |= {"caption_strategy": "filename", "resolution": 64}

    def add(self, name: str, width: int = 64, height: int = 64, grey: int = 0) -> Path:
        path = self.pictures / name
        path.write_bytes(png(width, height, grey))
        return path

    def write(self, **changes: object) -> Path:
        (self.home / "datasets.json").write_text(json.dumps([self.entry]))
        values = {key: value for key, value in (self.values | changes).items() if value is not None}
        (self.home / "config.json").write_text(json.dumps(values))
        return self.home / "config.json"

    def checked(self, **changes: object) -> Checked:
        return check(self.write(**changes), {}, {})


@pytest.fixture
def project(tmp_path):
    made = Project(tmp_path)
    for number in range(6):
        made.add(f"a cat {number}.png", grey=number)
    return made


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    """No rate and no hash of another test."""
    monkeypatch.setenv("SIMPLETUNER_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
