"""Exactness with the parts of the engine on: packed weights, blocks in RAM, parked inputs, optimizers in few bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import small
import torch
from safetensors.torch import load_file
from small import differences, exact, state

from simpletuner.data.loader import Loader
from simpletuner.errors import DivergedError
from simpletuner.memory.activations import Parked
from simpletuner.memory.stream import Streamed
from simpletuner.quantization.linear import PackedLinear
from simpletuner.rules.packages import installed

INT8 = {"base_model_precision": "int8-quanto"}
NF4 = {"base_model_precision": "nf4-bnb"}
SWAPPED = {"blocks_to_swap": 1, "gradient_checkpointing": True}
PARKED = {"gradient_checkpointing": True, "gradient_checkpointing_backend": "offload"}
GROUPED = {"enable_group_offload": True, "group_offload_use_stream": True, "gradient_checkpointing": True}
ROUNDED = {"optimizer": "adamw_bf16", "mixed_precision": "bf16"}
PAGED = {"optimizer": "bnb-lion8bit-paged", "learning_rate": 1e-4, "lora_rank": 64}  # 4096 numbers each: in 8 bits
PACKAGES = {"int8-quanto": "optimum.quanto", "nf4-bnb": "bitsandbytes", "bnb-lion8bit-paged": "bitsandbytes"}


def cases(**named):
    """Each with what it needs, left out where that is not installed."""
    found = []
    for name, changes in named.items():
        needed = [PACKAGES[value] for value in changes.values() if value in PACKAGES]
        # The packages warn of what they lack on a CPU.
        marks = [pytest.mark.filterwarnings("default")] * bool(needed)
        marks += [pytest.mark.skipif(not installed(package), reason=f"needs {package}") for package in needed]
        found.append(pytest.param(changes, id=name, marks=marks))
    return found


@pytest.fixture
def made(config, tmp_path):
    """A configuration that keeps packed weights in a folder of this test."""
    return lambda output, **changes: config(output, quantize_cache_dir=str(tmp_path / "weights"), **changes)


@pytest.fixture
def used(monkeypatch):
    """The parts of the engine that came into being."""
    found: set[str] = set()
    for kind in (Streamed, Parked, PackedLinear):

        def noted(self, *arguments, kind=kind, begin=kind.__init__, **named):
            found.add(kind.__name__)
            begin(self, *arguments, **named)

        monkeypatch.setattr(kind, "__init__", noted)
    return found


@pytest.mark.parametrize("changes", cases(
    swapped=SWAPPED,
    parked=PARKED | {"gradient_accumulation_steps": 2, "lora_dropout": 0.3},
    grouped=GROUPED,
    paged=PAGED,
    packed_in_8_bits_swapped_and_rounded=INT8 | SWAPPED | ROUNDED,
    packed_in_4_bits_grouped_parked_and_paged=NF4 | GROUPED | PARKED | PAGED,
))  # fmt: skip
def test_ten_steps_equal_four_and_six_to_the_bit(changes, made, used):
    changes = changes | {"lr_scheduler": "cosine", "lr_warmup_steps": 2}
    straight = small.train(made("straight", **changes))
    wanted = {
        "PackedLinear": "base_model_precision" in changes,
        "Streamed": "blocks_to_swap" in changes or "enable_group_offload" in changes,
        "Parked": "gradient_checkpointing_backend" in changes,
    }
    assert used == {name for name, there in wanted.items() if there}
    small.stop_after(small.prepared(made("split", **changes)), 4)
    rest = small.train(made("split", **changes))
    assert differences(state(straight.output_dir), state(rest.output_dir)) == []
    assert exact(straight.output_dir) == exact(rest.output_dir) and len(exact(rest.output_dir)) == 10
    assert [event["step"] for event in small.events(rest.output_dir, "run.resumed")] == [4]


def test_the_paged_optimizer_of_that_test_keeps_8_bits(made):
    if not installed("bitsandbytes"):
        pytest.skip("needs bitsandbytes")
    run = small.train(made("out", **PAGED | {"max_train_steps": 1}))
    kept = load_file(run.output_dir / "checkpoint-1/state/optimizer-0.safetensors")
    assert any(tensor.dtype == torch.uint8 for tensor in kept.values())


# ---- numbers that are not finite


@pytest.fixture
def poisoned(monkeypatch):
    """In step 3 latents are NaN."""
    pull = Loader.next

    def bad(loader):
        third = loader.progress.step == 2
        batch = pull(loader)
        return replace(batch, latents=torch.full_like(batch.latents, torch.nan)) if third else batch

    monkeypatch.setattr(Loader, "next", bad)


@pytest.fixture
def watched():
    """Runs that keep their adapter and their base at hand."""

    def prepared(path):
        run = small.prepared(path)
        attach = run.attach_adapter

        def kept(denoiser):
            run.adapter, run.denoiser = attach(denoiser), denoiser
            return run.adapter

        run.attach_adapter = kept
        return run

    return prepared


@pytest.mark.parametrize("changes", cases(int8=INT8 | SWAPPED | ROUNDED, nf4=NF4 | GROUPED | PARKED))
def test_a_bad_step_changes_nothing_on_a_packed_base_with_swapped_blocks(changes, made, watched, poisoned):
    settings = {"nonfinite_action": "stop", "checkpoint_step_interval": 2, "max_train_steps": 5}
    run = watched(made("out", **changes | settings))
    with pytest.raises(DivergedError):
        run.train()
    saved = load_file(run.output_dir / "checkpoint-2/state/adapter.safetensors")
    live = run.adapter.state()
    assert saved.keys() == live.keys() and all(torch.equal(saved[name], live[name]) for name in saved)
    packed = [layer for layer in run.denoiser.modules() if isinstance(layer, PackedLinear)]
    assert packed and all(layer.packed.dequantize(torch.float32).isfinite().all() for layer in packed)


@pytest.mark.parametrize("changes", cases(int8=INT8, nf4=NF4))
def test_after_a_bad_step_swapped_blocks_go_on_as_resident_ones(changes, made, poisoned):
    """A NaN that stayed behind in a slot, a parked input or a gradient would show in the steps that follow."""
    settings = {"nonfinite_action": "skip", "checkpoint_step_interval": 6, "max_train_steps": 6}
    recomputed = {"gradient_checkpointing": True}
    resident = small.train(made("resident", **changes | recomputed | settings))
    swapped = small.train(made("swapped", **changes | SWAPPED | PARKED | settings))
    assert small.metrics(swapped.output_dir)[6]["nonfinite_steps"] == 1
    assert differences(state(resident.output_dir, 6), state(swapped.output_dir, 6)) == []
    values = state(swapped.output_dir, 6).values()
    assert all(tensor.isfinite().all() for tensor in values if isinstance(tensor, torch.Tensor))
