"""Whole runs, with the true encoders, on a device whose memory is too small for them."""

from __future__ import annotations

import json

import pytest
import small
import torch
from diffusers.models.autoencoders.vae import Encoder
from safetensors.torch import load_file
from transformers import T5EncoderModel

from simpletuner import assembly, caches
from simpletuner.check import check
from simpletuner.errors import HardwareError

TILE = 64  # of the tiny VAE, in pixels


@pytest.fixture
def larger(config):
    """A configuration whose pictures are larger than a tile."""

    def make(output="out", *given, **changes):
        path = config(output, *given, **{"max_train_steps": 2, "checkpoint_step_interval": 2} | changes)
        datasets = path.parent / "datasets.json"
        entries = json.loads(datasets.read_text())
        datasets.write_text(json.dumps([entries[0] | {"resolution": 96}]))
        return path

    return make


@pytest.fixture
def memory(monkeypatch):
    """memory(pixels): what the VAE's encoder has room for at once, in one batch; collects what it was given."""
    given, forward = [], Encoder.forward

    def limit(pixels):
        def limited(self, x):
            given.append((len(x), x.shape[-2] * x.shape[-1]))
            if len(x) * x.shape[-2] * x.shape[-1] > pixels:
                raise torch.OutOfMemoryError("simulated")
            return forward(self, x)

        monkeypatch.setattr(Encoder, "forward", limited)
        return given

    return limit


def retries(output) -> list[str]:
    return [event["action"] for event in small.events(output, "memory.retry")]


def latents(home, cache="vae") -> dict[str, torch.Tensor]:
    """By file name, hence by key."""
    return {path.name: load_file(path)["latent"] for path in (home / "cache" / cache).rglob("*.safetensors")}


def test_the_vae_works_in_tiles_when_one_picture_does_not_fit(larger, memory, squares):
    memory(TILE * TILE)
    short = small.train(larger("short", squares)).output_dir
    tiling = "tiling, for all images; vae_enable_tiling=true does it from the start"
    halved = ["batch size 2", "batch size 1"]
    assert retries(short) == [*halved, tiling, *halved]
    made = latents(short.parent)
    memory(10**9)
    other = {"cache_dir_vae": str(short.parent / "cache/asked")}
    asked = small.train(larger("asked", squares, vae_enable_tiling=True, **other)).output_dir
    wanted = latents(short.parent, "asked")
    assert made.keys() == wanted.keys() and len(made) == 8  # the same keys hold the same numbers
    assert all(torch.allclose(made[key].float(), wanted[key].float(), atol=0.02) for key in made)
    assert not retries(asked)


def test_a_resumed_run_keeps_its_tiles_and_the_caches_know_of_them(larger, memory):
    memory(TILE * TILE)
    small.train(larger())
    given = memory(10**9)  # now it would fit
    given.clear()
    path = larger(max_train_steps=4)
    checked = check(path, {}, environ={})
    found = [folder for folder in caches.survey(checked)[0] if folder.kind == "vae"]
    assert [(len(folder.stored), len(folder.wanted), folder.stale, folder.unused) for folder in found] == [
        (7, 7, [], [])
    ]
    run = small.train(path)
    assert run.progress.step == 4 and given == [] and len(latents(path.parent)) == 7
    drift = small.events(run.output_dir, "run.resumed")[-1]["drift"]
    assert not any("dataset" in line or "latent" in line for line in drift)


def test_a_picture_that_does_not_even_fit_in_tiles_is_named(larger, memory):
    memory(0)
    with pytest.raises(HardwareError, match=r"picture \d\.png: memory ran out") as found:
        small.train(larger())
    assert found.value.exit_code == 5


def test_texts_are_encoded_on_the_cpu_and_are_the_same(config, monkeypatch):
    """The first encoders, which would be on a GPU, have room for nothing; the next ones are on the CPU."""
    run = small.prepared(config())
    run.family = run.load_family()
    library = run.scan()
    plain = items(run.encode_texts(library))
    run.datasets.text.cache.rename(run.datasets.text.cache.with_name("elsewhere"))

    places, without_room, load, forward = [], [], run.family.load_text_encoders, T5EncoderModel.forward

    def noted(device):
        encoders = load("cpu")
        if torch.device(device).type != "cpu":
            without_room.append(id(encoders["t5"]))
        places.append(torch.device(device).type)
        return encoders

    def limited(self, ids):
        if len(places) == 1:
            assert id(self) in without_room
            raise torch.OutOfMemoryError("simulated")
        return forward(self, ids)

    monkeypatch.setattr(run.family, "load_text_encoders", noted)
    monkeypatch.setattr(T5EncoderModel, "forward", limited)
    assert assembly.text_encoders(run.config, run.family, run.device).spare is None
    run.device = torch.device("cuda")
    made = items(run.encode_texts(library))
    library.close()
    assert places == ["cuda", "cpu"] and retries(run.output_dir)[-1].startswith("text encoders on the CPU")
    assert made.keys() == plain.keys() and len(made) > 7
    for name, tensors in plain.items():
        assert all(torch.equal(tensor, made[name][key]) for key, tensor in tensors.items())


def items(cache) -> dict[str, dict[str, torch.Tensor]]:
    return {path.name: load_file(path) for path in cache.store.root.rglob("*.safetensors")}
