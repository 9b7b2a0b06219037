"""The first screen fits a terminal, whatever the run is made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_flux
import torch

from simpletuner import plan
from simpletuner.adapters.lora import Lora
from simpletuner.adapters.options import Adapter
from simpletuner.check import check
from simpletuner.data.library import survey
from simpletuner.data.options import Data
from simpletuner.events import EventLog
from simpletuner.models import families
from simpletuner.plan.screen import first_screen

from .conftest import machine


@pytest.fixture(scope="module")
def adapter():
    found = Lora(Adapter(), ["to_q", "to_k"], seed=0, dtype=torch.float32)
    found.attach(tiny_flux.transformer())
    return found


def screen(project, adapter, resumed=None, **changes) -> str:
    checked = check(project.write(**changes), {}, {})
    settings = {"batch_size": 1, "accumulation": 1, "ranks": 1, "events": EventLog(None)}
    library, _ = survey(checked.datasets, checked.config[Data], **settings)
    flavour = families()["flux"].flavours["nano"]
    text = first_screen(checked.config, flavour, library, adapter, 500, resumed, torch.device("cpu"))
    library.close()
    return text


def test_it_says_what_the_plan_says(project, adapter):
    project.add("small.png", 32, 32)
    project.entry["minimum_image_size"] = 64
    lines = screen(project, adapter).splitlines()
    made = plan.make(project.checked(), machine())
    epoch = f"6 batches = {made.details.length.per_epoch:g} steps per epoch"
    assert "data     cats: 6 of 7 images x 1   64x64 (6)" in lines
    assert f"{'':<9}{epoch}, 1 image left out (dataset report)" in lines
    assert "length   500 steps = 83.33 epochs, batch 1 x 1, seed 42" in lines
    assert "resume   nothing to resume in out" in lines
    assert any(line.startswith("device   cpu, ") and "RAM estimate 1." in line for line in lines)


def test_forty_datasets_fit_into_24_lines_of_80_columns(project, adapter, monkeypatch):
    monkeypatch.chdir(project.home)
    entries = []
    for number in range(40):
        folder = project.home / f"pictures {number}"
        shutil.copytree(project.pictures, folder)
        id = f"a dataset with quite a long name that says what is in it, number {number}"
        entries.append(project.entry | {"id": id, "instance_data_dir": str(folder)})
    path = project.write(
        lr_scheduler="cosine_with_restarts", validation_disable=False, validation_prompt="a cat",
        validation_resolution="1024x1024,1280x768,768x1280,512x512,1536x640",
    )  # fmt: skip
    (project.home / "datasets.json").write_text(json.dumps(entries))
    monkeypatch.setattr(project, "write", lambda: path)
    lines = screen(project, adapter, Path("checkpoint-400")).splitlines()
    assert len(lines) == 24 and max(map(len, lines)) <= 80
    assert any("more datasets" in line for line in lines) and lines[-1] == "Stop with Ctrl-C (saves first)."
    assert sum("…" in line for line in lines) > 3
