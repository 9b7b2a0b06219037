"""Whole runs on a quantised base: trained, resumed to the bit, started again from the cache of its weights."""

from __future__ import annotations

import json
import os
import signal

import pytest
import small
import torch
from quantization.kinds import missing, parameters

from simpletuner import encoding, newfile, process
from simpletuner.adapters.lora import Lora
from simpletuner.errors import HardwareError
from simpletuner.quantization import packer as packing
from simpletuner.quantization import quantize, shelf, store
from simpletuner.quantization.linear import PackedLinear

KIND = "int8-compute"  # which needs no library
TWO = [p for p in parameters() if p.values[0] in ("int8-quanto", "nf4-bnb")]


@pytest.fixture
def quantised(config, tmp_path):
    """quantised(kind, output, ...): a configuration whose weights are kept in a folder of this test."""

    def make(kind=KIND, output="out", **changes):
        values = {"base_model_precision": kind, "quantize_cache_dir": str(tmp_path / "weights")}
        return config(output, **values | changes)

    return make


def notices(run) -> list[str]:
    told: list[str] = []
    run.events.subscribe(lambda e: told.append(e.data["message"]) if e.type in ("log", "warning") else None)
    return told


@pytest.mark.parametrize("kind", TWO)
def test_a_resumed_run_on_a_quantised_base_equals_an_unbroken_one(kind, quantised, monkeypatch):
    small.train(quantised(kind, "straight"))
    (folder,) = shelf.folders(quantised(kind).parent / "weights")
    assert shelf.damaged(folder) == [] and shelf.read(folder).title == f"transformer {kind}"
    monkeypatch.setattr(packing, "quantise", lambda *_: pytest.fail("a matrix was packed"))
    broken = quantised(kind, "broken")
    small.stop_after(small.prepared(broken), 6)
    run = small.train(broken)
    assert any(line.startswith(f"transformer: {kind} weights from ") for line in notices(run)) or run.family
    assert small.differences(small.state(broken.parent / "straight"), small.state(broken.parent / "broken")) == []
    assert small.exact(broken.parent / "straight") == small.exact(broken.parent / "broken")


def test_training_on_a_quantised_base_follows_that_on_a_plain_one(quantised, config):
    small.train(config("plain"))
    small.train(quantised(KIND, "packed"))
    home = quantised().parent
    plain, packed = (small.exact(home / name) for name in ("plain", "packed"))
    losses = [(plain[step][0], packed[step][0]) for step in plain]
    assert all(abs(a - b) < 0.02 * a for a, b in losses) and plain != packed
    facts = json.loads((home / "packed/checkpoint-10/MANIFEST.json").read_text())
    other = json.loads((home / "plain/checkpoint-10/MANIFEST.json").read_text())
    assert facts["base"]["hash"] != other["base"]["hash"]


def test_the_exported_file_names_the_base_precision(quantised):
    from safetensors import safe_open

    small.train(quantised(max_train_steps=2))
    with safe_open(quantised().parent / "out" / small.RESULT, framework="pt") as file:
        assert file.metadata()["simpletuner.base_precision"] == KIND


def test_a_quantised_text_encoder_has_embeddings_of_its_own(quantised, config):
    if missing("quanto"):
        pytest.skip("without quanto")
    run, other = (
        small.prepared(make(text_encoder_2_precision="int8-quanto", text_encoder_1_precision=first))
        for make, first in ((quantised, "no_change"), (config, "int8-quanto"))
    )
    plain = small.prepared(config())
    families = [one.load_family() for one in (run, other, plain)]
    assert len({family.text_fingerprint() for family in families}) == 3
    encoders, exact = families[0].load_text_encoders("cpu"), families[2].load_text_encoders("cpu")
    packed = [layer for layer in encoders["t5"].modules() if isinstance(layer, PackedLinear)]
    assert len(packed) == 7 and not any(isinstance(m, PackedLinear) for m in encoders["clip"].modules())
    texts = ["a red cat", ""]
    ours, theirs = families[0].encode_text(encoders, texts), families[2].encode_text(exact, texts)
    assert torch.equal(ours["clip"], theirs["clip"])
    assert 0 < (ours["t5"] - theirs["t5"]).norm() < 0.03 * theirs["t5"].norm()
    again = families[0].load_text_encoders("cpu")
    assert torch.equal(families[0].encode_text(again, texts)["t5"], ours["t5"])
    both = families[1].load_text_encoders("cpu")
    assert any(isinstance(m, PackedLinear) for m in both["clip"].modules())
    assert (families[1].encode_text(both, texts)["clip"] - theirs["clip"]).norm() < 0.05 * theirs["clip"].norm()


def test_a_kind_that_fails_here_ends_the_run_before_anything_is_loaded(quantised, monkeypatch):
    monkeypatch.setitem(quantize.QUANTISERS, KIND, lambda weight: 1 / 0)
    with pytest.raises(HardwareError, match="does not work on this CPU"):
        small.prepared(quantised()).load_family()


def test_the_adapter_lies_where_the_packed_layers_lie(quantised):
    run = small.prepared(quantised())
    run.family = run.load_family()
    denoiser = run.family.load_denoiser("cpu")
    adapter = run.attach_adapter(denoiser)
    assert isinstance(adapter, Lora) and {p.device.type for p in adapter.parameters().values()} == {"cpu"}
    assert all(isinstance(layer.get_base_layer(), PackedLinear) for layer in adapter.layers.values())


def test_an_unclean_end_has_the_hashes_compared(quantised, monkeypatch):
    path = quantised(max_train_steps=2)
    small.train(path)
    read = []
    monkeypatch.setattr(newfile, "sha256", lambda file: read.append(file) or "another")
    run = small.prepared(path)  # whose log has no ending: `train` of these tests writes none
    assert run.events.unclean
    run.family = run.load_family()
    monkeypatch.setattr(store, "write", lambda *_: None)
    run.family.load_denoiser("cpu")
    assert read and any("made again" in problem.message for problem in run.family.notices)


def test_a_killed_run_leaves_weights_that_the_next_start_reads_or_makes_again(forks, quantised):
    """tests/quantization kills at every write of the weights; here it is the run around them."""
    home = quantised().parent

    def begin(name, at=0):
        path = quantised(output=name, max_train_steps=2, quantize_cache_dir=str(home / f"weights of {name}"))
        return forks.run(path, at), shelf.folders(home / f"weights of {name}")

    assert begin("first")[0] == begin("counted")[0] == 0  # the second finds all embeddings and latents
    calls = int((home / "counted.json.calls").read_text())
    for number in range(1, 5):
        status, left = begin(f"out{number}", calls * number // 6)
        assert status == -signal.SIGKILL and not any(shelf.damaged(folder) for folder in left)
        status, (folder,) = begin(f"out{number}")
        assert status == 0 and shelf.damaged(folder) == []
        assert small.differences(small.state(home / "first", 2), small.state(home / f"out{number}", 2)) == []


# ---- the commands


def build(path, only=None) -> int:
    return process.run(path, job=lambda checked, events: encoding.encode(checked, events, only))


def test_build_makes_the_weights_ahead_of_time(quantised, monkeypatch):
    path = quantised()
    assert build(path, "weights") == 0
    assert not (path.parent / "cache").exists() or not list((path.parent / "cache").rglob("*.safetensors"))
    (folder,) = shelf.folders(path.parent / "weights")
    monkeypatch.setattr("simpletuner.models.flux.family.Flux.load_denoiser", lambda *_: pytest.fail("it was loaded"))
    assert build(path) == 0 and shelf.folders(path.parent / "weights") == [folder]


def command(path, *words, code=0):
    from click.testing import CliRunner

    from simpletuner.cli.main import program

    done = CliRunner().invoke(program, ["cache", *words, "--config", str(path)])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def test_status_verify_and_prune_know_the_weights(quantised):
    path = quantised()
    (before,) = json.loads(command(path, "status", "--json"))["weights"]
    assert (before["kind"], before["present"]) == (KIND, False)
    assert build(path) == 0 and build(quantised("fp8-compute"), "weights") == 0
    path = quantised()
    told = command(path, "status")
    assert f"transformer {KIND}" in told and "unused 1" in told and "shared" in told
    record = json.loads(command(path, "status", "--json"))
    assert record["weights"][0]["present"] is True and record["weights"][0]["bytes"] > 100_000
    own = path.parent / "weights" / record["weights"][0]["key"]
    (file,) = own.glob("*.safetensors")
    os.truncate(file, file.stat().st_size - 3)
    damaged = json.loads(command(path, "verify", "--json", code=3))["damaged"]
    assert [entry["file"] for entry in damaged] == [str(own)]
    listed = command(path, "prune", "--dry-run")
    assert "transformer fp8-compute" in listed and len(shelf.folders(own.parent)) == 2
    command(path, "prune", "--yes")
    assert shelf.folders(own.parent) == [own]


def test_verify_repairs_the_weights(quantised, monkeypatch):
    path = quantised()
    assert build(path) == 0
    (folder,) = shelf.folders(path.parent / "weights")
    (file,) = folder.glob("*.safetensors")
    os.truncate(file, file.stat().st_size - 3)
    monkeypatch.setattr("simpletuner.cli.cache._build", lambda checked, only, as_json: build(path))
    assert "1 damaged item was removed" in command(path, "verify", "--repair")
    assert shelf.damaged(folder) == []


@pytest.mark.parametrize(("via", "advice"), [("cpu", "quantize_via=auto or accelerator"), ("auto", "close other")])
def test_a_run_that_the_system_kills_is_told_how_to_pack_without_ram(via, advice, quantised, monkeypatch):
    from click.testing import CliRunner

    from simpletuner.cli.main import program

    monkeypatch.setattr("simpletuner.launch.run", lambda *_: -signal.SIGKILL)
    done = CliRunner().invoke(program, ["train", "--config", str(quantised(quantize_via=via))])
    assert isinstance(done.exception, HardwareError) and done.exception.exit_code == 5, done.exception
    assert done.exception.problems[0].fix.startswith(advice)
