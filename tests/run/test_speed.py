"""Whole runs with the options of speed: which kernel computes what, what is told, and the same result."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import small
import torch
from click.testing import CliRunner
from torch._dynamo.testing import CompileCounter

from simpletuner import engine
from simpletuner.check import check
from simpletuner.cli.main import program
from simpletuner.events import read_lines
from simpletuner.kernels import attention
from simpletuner.rules.packages import installed

SHORT = {"max_train_steps": 2, "checkpoint_step_interval": 2}
SAMPLED = small.SAMPLES | {"validation_num_inference_steps": 3, "validation_step_interval": 2}
NUM_BLOCKS, NUM_STEPS = 2, 3  # of the tiny model, and of a picture
NF4 = pytest.param("nf4-bnb", marks=pytest.mark.skipif(not installed("bitsandbytes"), reason="needs bitsandbytes"))


@pytest.fixture
def sage(monkeypatch):
    """A stand-in for the package, which runs on cards only: what it saw, q of each call."""
    seen = []

    def sageattn(q, k, v, tensor_layout):
        assert tensor_layout == "NHD" and not q.requires_grad
        seen.append(q)
        return attention.sdpa(q, k, v, None).unflatten(2, q.shape[2:]) * 1.001  # another kernel, another rounding

    module = types.ModuleType("sageattention")
    module.sageattn = sageattn
    monkeypatch.setitem(sys.modules, "sageattention", module)
    return seen


@pytest.fixture
def counter(monkeypatch):
    """Counts what the compiler is given, in place of the backend `eager`."""
    torch.compiler.reset()
    counter, compile = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, *, backend, **more: compile(f, backend=counter, **more))
    yield counter
    torch.compiler.reset()


def told(config, severity) -> list[str]:
    log = read_lines(config.with_suffix("") / "events.jsonl")
    return [e["data"]["message"] for e in log if e["type"] == "log" and e["severity"] == severity]


def made(config, folder="validation_images"):
    """Name -> bytes of the pictures."""
    return {path.name: path.read_bytes() for path in (config.with_suffix("") / folder).glob("**/*.png")}


@pytest.mark.parametrize("base", ["no_change", NF4])
def test_sage_computes_samples_and_no_step(base, config, sage, tmp_path):
    given = SHORT | SAMPLED | {"base_model_precision": base, "quantize_cache": False, "gradient_checkpointing": True}
    small.train(plain := config("plain", **given))
    assert not sage
    small.train(sampled := config("sampled", **given, attention_mechanism="sageattention"))
    tried, *calls = sage
    pictures = {**made(sampled), **made(sampled, "benchmarks")}
    assert len(pictures) >= 2 and len(calls) == len(pictures) * NUM_STEPS * NUM_BLOCKS
    assert small.differences(small.state(tmp_path / "plain", 2), small.state(tmp_path / "sampled", 2)) == []
    assert made(plain).keys() == made(sampled).keys() and made(plain) != made(sampled)
    assert "attention sdpa, in samples sageattention; blocks run uncompiled" in told(sampled, "info")


def test_generate_makes_the_same_pictures_with_the_same_kernel(config, sage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = small.train(path := config("out", **SHORT, **SAMPLED, attention_mechanism="sageattention"))
    done.config.write(tmp_path / "out/config.resolved.json")
    sage.clear()
    answer = CliRunner().invoke(
        program, ["generate", "--run", str(tmp_path / "out"), "--prompt", "photo of a red cat"], catch_exceptions=False
    )
    (picture,) = answer.stdout.splitlines()
    assert len(sage) == 1 + NUM_STEPS * NUM_BLOCKS
    assert Path(picture).read_bytes() in made(path).values()


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # PyTorch's compiler warns of itself
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("more", [{}, {"gradient_checkpointing": True}, {"dynamo_dynamic": True}], ids=str)
def test_a_compiled_run_is_the_plain_run(more, config, squares, counter, tmp_path):
    given = SHORT | SAMPLED | {"pictures": squares} | more
    small.train(config("plain", **given))
    assert counter.frame_count == 0
    small.train(compiled := config("compiled", **given, dynamo_backend="eager", dynamo_fullgraph=True))
    assert counter.frame_count == 2 * (1 + bool(more.get("gradient_checkpointing")))
    ours, theirs = small.exact(tmp_path / "compiled"), small.exact(tmp_path / "plain")
    for step, numbers in theirs.items():
        assert ours[step] == pytest.approx(numbers, rel=1e-5)
    assert "attention sdpa; blocks are compiled" in told(compiled, "info")


@pytest.mark.parametrize("given", [{"dynamo_backend": "cudagraphs"}, {"dynamo_mode": "reduce-overhead"}], ids=str)
def test_steps_that_cannot_be_recorded_are_told_and_run(given, config):
    small.train(path := config(**SHORT, **given))
    (warning,) = told(path, "warning")
    assert warning == "steps are not recorded as a CUDA graph: this needs an NVIDIA or AMD GPU"


def test_the_line_says_what_will_be_fast():
    assert engine._line("cudnn", True, True, 1) == (
        "attention cudnn; blocks are compiled and steps are recorded as a CUDA graph, after a first step as written"
    )
    assert engine._line("sdpa", False, True, 0) == "attention sdpa; steps are recorded as a CUDA graph"


@pytest.mark.parametrize(("given", "capturable", "scaler", "said"), [
    ({}, True, None, ""),
    ({}, False, None, "buffers"),
    ({"offload_during_save": True}, True, None, "leaves the GPU"),
    ({}, True, object(), "fp16"),
    ({"gradient_precision": "fp32"}, True, None, "gradient_precision"),
])  # fmt: skip
def test_what_stands_in_the_way_of_recording(given, capturable, scaler, said, config):
    loaded = check(config(**given), {}, environ={}).config
    precision = SimpleNamespace(device=torch.device("cuda"), scaler=scaler)
    obstacle = engine._obstacle(loaded, SimpleNamespace(capturable=capturable), precision)
    assert said in obstacle and bool(obstacle) == bool(said)


@pytest.mark.parametrize(("given", "recorded"), [
    ({}, True),
    ({"dynamo_backend": "cudagraphs"}, True),
    ({"dynamo_backend": "inductor"}, False),
    ({"dynamo_backend": "inductor", "dynamo_mode": "max-autotune"}, True),
    ({"dynamo_backend": "inductor", "dynamo_mode": "reduce-overhead"}, True),
    ({"dynamo_mode": "max-autotune-no-cudagraphs"}, False),
    ({"dynamo_backend": "no", "dynamo_mode": "reduce-overhead"}, False),
    ({"dynamo_backend": "eager", "dynamo_mode": "reduce-overhead"}, False),
], ids=str)  # fmt: skip
def test_steps_are_recorded_as_the_options_say(given, recorded, config):
    loaded = check(config(**given), {}, environ={}).config
    precision = SimpleNamespace(device=torch.device("cuda"), scaler=None)
    assert engine._recorded(loaded, SimpleNamespace(capturable=True), precision, None) is recorded


@pytest.mark.parametrize(("given", "settings"), [
    ({"dynamo_backend": "inductor"}, {"backend": "inductor", "dynamic": False, "fullgraph": False}),
    ({"dynamo_backend": "inductor", "dynamo_mode": "max-autotune", "dynamo_dynamic": True},
     {"backend": "inductor", "dynamic": True, "fullgraph": False, "mode": "max-autotune-no-cudagraphs"}),
    ({"dynamo_backend": "inductor", "dynamo_mode": "max-autotune-no-cudagraphs", "dynamo_fullgraph": True},
     {"backend": "inductor", "dynamic": False, "fullgraph": True, "mode": "max-autotune-no-cudagraphs"}),
    ({"dynamo_backend": "aot_eager", "dynamo_mode": "max-autotune"},
     {"backend": "aot_eager", "dynamic": False, "fullgraph": False}),
], ids=str)  # fmt: skip
def test_the_compiler_is_told_what_the_options_say(given, settings, config, monkeypatch):
    """And not before something is compiled, since its import takes seconds."""
    seen, prepared = [], []
    monkeypatch.setattr(torch, "compile", lambda function, **more: seen.append(more) or function)
    monkeypatch.setattr(engine, "prepare", lambda *told: prepared.append(told))
    loaded = check(config(activation_memory_budget=0.5, **given), {}, environ={}).config
    functional = SimpleNamespace(functions=dict.fromkeys(("double", "double again"), lambda: ()))
    precision = SimpleNamespace(device=torch.device("cpu"))

    def compiled(num_shapes):
        found = engine._compiled(loaded, functional, precision, num_shapes)
        assert list(found) == ["double", "double again"] and not seen
        for function in found.values():
            with function.active():
                function()

    compiled(1)
    assert seen == [settings, settings] and set(prepared) == {(1, 0.5)}
    seen.clear()
    compiled(25)
    assert all(one["dynamic"] for one in seen)
