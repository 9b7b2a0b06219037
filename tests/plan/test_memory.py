"""The estimate against the peaks that an H100 showed (benchmarks/memory.py made the file), and against autograd."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simpletuner import config as configuration
from simpletuner.models import families
from simpletuner.models.options import Model
from simpletuner.plan import memory

STEPS = json.loads((Path(__file__).parents[2] / "benchmarks/results/step.json").read_text("utf-8"))
RUNS = json.loads((Path(__file__).parents[2] / "benchmarks/results/engine.json").read_text("utf-8"))
MEASURED = json.loads((Path(__file__).parents[2] / "benchmarks/results/memory.json").read_text("utf-8"))
CLOSE = 0.10  # what the plan promises
GIB = 2**30


def estimate(settings: dict, size: int = 1024) -> dict[str, memory.Phase]:
    given = {"model_flavour": "dev", "data_backend_config": "sets.json", "max_train_steps": 10} | settings
    config, problems = configuration.load(None, given, {})
    assert [p for p in problems if p.severity == "error"] == []
    return {phase.name: phase for phase in memory.estimate(config, [(size, size)])}


@pytest.mark.parametrize(
    "run", MEASURED["runs"], ids=lambda run: f"{run['size']}x{run['batch']}-{run['settings']}"[:60]
)
def test_the_estimate_is_within_a_tenth_of_the_measured_peak(run):
    settings = {"train_batch_size": run["batch"], "validation_disable": True, "dynamo_backend": "no"}  # as it was then
    phases = estimate(settings | run["settings"], run["size"])
    for name, (gpu, _) in run["measured"].items():
        assert phases[name].vram_bytes / GIB == pytest.approx(gpu, rel=CLOSE), name


@pytest.mark.parametrize("row", STEPS["rows"], ids=str)
def test_the_estimate_of_compiled_blocks_is_within_a_tenth_of_the_measured_one(row):
    """Measured without an optimizer, whose state is half a percent."""
    found = STEPS["rows"][row]
    phases = estimate({"flux_lora_target": "all+ffs", **found["settings"]}, found["size"])
    assert phases["training"].vram_bytes / GIB == pytest.approx(found["driver_gib"], rel=CLOSE)


@pytest.mark.parametrize("run", [run for run in RUNS["rows"] if "driver_gib" in run], ids=lambda run: run["row"])
def test_the_estimate_of_a_whole_run_is_within_a_tenth_of_the_measured_peak(run):
    phases = estimate({"flux_lora_target": "all+ffs", **run["settings"]}, run["size"])
    assert phases["training"].vram_bytes / GIB == pytest.approx(run["driver_gib"], rel=CLOSE)


def test_ram_is_enough_for_what_was_held():
    for run in MEASURED["runs"]:
        phases = estimate(run["settings"] | {"train_batch_size": run["batch"]}, run["size"])
        for name, (_, ram) in run["measured"].items():
            assert ram * 0.9 < phases[name].ram_bytes / GIB < ram + 2


@pytest.mark.parametrize(
    "settings",
    [{"gradient_checkpointing": False}, {"train_batch_size": 4}, {"flux_lora_target": "all+ffs"}, {"lora_rank": 128},
     {"optimizer": "torch-adamw"}, {"gradient_checkpointing_interval": 2}, {"base_model_precision": "fp32"}],
    ids=str,
)  # fmt: skip
def test_what_takes_memory_raises_the_estimate(settings):
    assert estimate(settings)["training"].vram_bytes > estimate({})["training"].vram_bytes


# Of training.md section 10, in GB: the layers of blocks in the kind, the rest in bf16.
BASES = {"int8-quanto": 11.97, "int4-quanto": 6.42, "int2-quanto": 3.46, "fp8-torchao": 11.97, "int4-torchao": 6.42,
         "nf4-bnb": 6.24, "int8-bnb": 11.97, "fp8-compute": 11.97}  # fmt: skip


@pytest.mark.parametrize("kind", BASES)
def test_a_quantised_base_is_counted_by_its_kind(kind):
    phases, plain = estimate({"base_model_precision": kind}), estimate({})
    assert phases["training"].vram["base"] / 1e9 == pytest.approx(BASES[kind], abs=0.005)
    assert phases["validation"].vram["base"] == phases["training"].vram["base"]
    largest = 18432 * 3072 * 2  # one matrix unpacked: the modulation of a double block
    assert phases["training"].vram["workspace"] - plain["training"].vram["workspace"] == largest


def test_quantised_text_encoders_are_counted_by_their_kind():
    def t5(kind):
        return estimate({"text_encoder_2_precision": kind})["text cache"].vram["text encoders"]

    clip = 2 * 123_060_480
    assert t5("no_change") == clip + 2 * 4_762_310_656
    assert (t5("int8-quanto") - clip) / 1e9 == pytest.approx(4.9, abs=0.05)  # training.md section 12
    assert (t5("nf4-bnb") - clip) / 1e9 == pytest.approx(2.7, abs=0.05)


def test_a_model_on_disk_counts_itself():
    assert estimate({"model_flavour": "nano"}, 128)["training"].vram["base"] < 2 * 10**7
    assert estimate({})["training"].vram["base"] == 2 * 11_901_408_320


def test_a_late_layer_keeps_nothing_of_the_blocks_before_it():
    late, early = (
        estimate({"gradient_checkpointing": False, "peft_lora_target_modules": [name]})["training"].vram["activations"]
        for name in ("single_transformer_blocks.37.proj_out", "single_transformer_blocks.0.proj_out")
    )
    assert late < early / 5


def test_full_training_holds_gradients_and_moments_of_every_weight():
    full = estimate({"model_type": "full"})["training"].vram
    assert full["adapter and optimizer"] == 3 * full["base"]
    shapes = families()["flux"].shapes(Model())
    assert full["base"] == 2 * shapes.num_weights


def test_state_in_8_bits_is_a_byte_for_each_number_and_a_scale_for_256():
    def held(name):
        return estimate({"optimizer": name, "flux_lora_target": "all+ffs"})["training"].vram["adapter and optimizer"]

    count = 65_422_336  # rank 16 on all+ffs
    assert held("bnb-adamw") == count * (4 + 4 + 2 + 8)  # weight, gradient, the 16-bit copy of autocast, two moments
    small = 1024  # in a tensor of fewer than 4096, which is kept in 32 bits
    lion = (count - small) * (1 + 4 / 256) + small * 4
    assert held("bnb-adamw") - held("bnb-lion8bit-paged") == count * 8 - lion
    kahan = {"optimizer": "adamw_bf16", "optimizer_config": "rounding=kahan"}
    more = estimate(kahan)["training"].vram["adapter and optimizer"]
    assert more / estimate({})["training"].vram["adapter and optimizer"] == 10 / 8
