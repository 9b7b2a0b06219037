"""Whole runs whose weights and activations wait elsewhere: the same numbers, to the bit."""

import functools
from contextlib import contextmanager

import pytest
import small
import torch

from simpletuner import residence
from simpletuner.errors import ConfigError
from simpletuner.memory import parts
from simpletuner.memory.stream import Streamed

STEPS = {"max_train_steps": 3, "checkpoint_step_interval": 3, "gradient_checkpointing": True}
SAMPLES = small.SAMPLES | {"validation_step_interval": 2}


@pytest.fixture(scope="module")
def expected(tmp_path_factory, model, pictures):
    home = tmp_path_factory.mktemp("plain")
    small.train(small.configure(home, model, pictures, **STEPS, **SAMPLES))
    return home


def same_run(home, expected):
    """Weights, optimizer, numbers and pictures."""
    assert small.differences(small.state(home / "out", 3), small.state(expected / "out", 3)) == []
    assert small.exact(home / "out") == small.exact(expected / "out")
    made, plain = (
        {path.name: path.read_bytes() for path in (folder / "out/validation_images").iterdir()}
        for folder in (home, expected)
    )
    assert made == plain and len(made) > 1


@pytest.mark.parametrize("given", [
    {"blocks_to_swap": 1, "offload_during_startup": True, "offload_during_save": True},
    {"blocks_to_swap": 56, "gradient_checkpointing": False},
    {"enable_group_offload": True, "group_offload_blocks_per_group": 2, "group_offload_use_stream": True,
     "group_offload_text_encoder": True, "group_offload_vae": True},
    {"enable_group_offload": True, "group_offload_type": "leaf_level", "group_offload_to_disk_path": "disk"},
    {"gradient_checkpointing_backend": "offload", "enable_model_cpu_offload": True},
], ids=str)  # fmt: skip
def test_an_offloaded_run_is_the_plain_run(given, expected, tmp_path, model, pictures, monkeypatch):
    made = []
    monkeypatch.setattr(residence, "Streamed", lambda *a, **k: made.append(Streamed(*a, **k)) or made[-1])
    given = {key: str(tmp_path / value) if value == "disk" else value for key, value in given.items()}
    small.train(small.configure(tmp_path, model, pictures, **{**STEPS, **SAMPLES, **given}))
    same_run(tmp_path, expected)
    moved = "blocks_to_swap" in given or "enable_group_offload" in given
    assert len(made) == moved and all(streamed.copies for streamed in made)
    for streamed in made:  # each block and its modulation
        assert len(streamed.blocks) == 2 * len({block.index for block in streamed.blocks})


def test_full_training_parks_its_activations_too(tmp_path, model, pictures):
    def trained(name, **given):
        full = {
            **STEPS,
            "model_type": "full",
            "base_model_precision": "fp32",
            "output_dir": str(tmp_path / name),
            **given,
        }
        small.train(small.configure(tmp_path, model, pictures, name, **full))
        return small.exact(tmp_path / name)

    assert trained("parked", gradient_checkpointing_backend="offload") == trained("plain")


def test_what_moves_is_loaded_into_ram(tmp_path, model, pictures):
    """So that a card never holds the whole: here, the device that tensors would go to is another one than RAM."""
    run = small.prepared(small.configure(tmp_path, model, pictures, blocks_to_swap=1))
    family = run.load_family()
    device = torch.device("meta")
    home = residence.home(run.config, device)
    layers = [f"{path}.weight" for path in family.layers()]
    waiting = {name for name in layers if home(name).type == "cpu"}
    blocks = {".".join(name.split(".")[:2]) for name in waiting}
    assert len(blocks) == 1 and all(name in waiting for name in layers if name.startswith(f"{min(blocks)}."))
    assert home("x_embedder.weight") == device and home("proj_out") == device
    plain = small.prepared(small.configure(tmp_path, model, pictures, "other"))
    assert residence.home(plain.config, device) is None


def test_an_adapter_that_needs_whole_modules_says_so(tmp_path, model, pictures):
    run = small.prepared(small.configure(tmp_path, model, pictures, blocks_to_swap=1))
    with pytest.raises(ConfigError, match="blocks_to_swap"):
        residence.residency(run.config, None, torch.device("cpu"))


def test_parts_make_room_where_the_options_say(tmp_path, model, pictures, monkeypatch):
    """On a machine without a GPU nothing has to move, so that the places are counted where they are asked for."""
    seen = []

    def watched(name, function):
        @contextmanager
        @functools.wraps(function)
        def inside(*arguments):
            seen.append(name)
            with function(*arguments):
                yield

        return inside

    for name in ("aside", "visiting"):
        monkeypatch.setattr(parts, name, watched(name, getattr(parts, name)))
    startup = {"offload_during_startup": True, "max_train_steps": 1, "checkpoint_step_interval": 1}
    small.train(small.configure(tmp_path, model, pictures, **startup))
    assert set(seen) == {"visiting"} and len(seen) >= 2  # texts, images
    seen.clear()
    small.train(small.configure(tmp_path, model, pictures, "two", offload_during_save=True, max_train_steps=1))
    assert seen == ["aside"]
    seen.clear()
    small.train(small.configure(tmp_path, model, pictures, "three", enable_model_cpu_offload=True, **STEPS | SAMPLES))
    assert seen == ["aside", "visiting"] * 3  # benchmark, step 2, the last step
