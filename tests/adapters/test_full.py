"""Full training on a tiny real Flux: what is trained, what is written, and what is found wrong with it."""

from __future__ import annotations

import json
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_flux import transformer

from simpletuner.adapters import full as module
from simpletuner.adapters.full import Full
from simpletuner.adapters.kinds import KINDS
from simpletuner.adapters.metadata import describe
from simpletuner.adapters.options import Adapter
from simpletuner.adapters.weights import Tensors
from simpletuner.config import OPTIONS
from simpletuner.errors import ConfigError

FACTS = {"base_name": "/home/someone/models/flux-copy", "output_name": "cats", "step": 10, "architecture": "flux-1-dev"}
WEIGHTS = "diffusion_pytorch_model.safetensors"
FLOATS = {"hidden_states", "encoder_hidden_states", "pooled_projections"}  # inputs in the precision of the weights


def attached(dtype=torch.float32, seed=0, **options) -> Full:
    model = transformer(layers=(1, 2), seed=seed).requires_grad_(False)
    full = Full(Adapter(**options), dtype=dtype)
    full.attach(torch.nn.Module.to(model, dtype=dtype))
    return full


def metadata_of(path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_the_kinds_are_those_that_the_option_offers_and_can_be_built():
    assert list(KINDS) == [name for name, _ in OPTIONS["model_type"].choices]
    for kind in KINDS.values():
        built = kind.load().build(Adapter(), lambda preset, names: (), seed=1, dtype=torch.float32)
        assert built.kind == kind.name and built.checks and built.format == "diffusers"


def test_every_weight_is_trained_and_attaching_changes_no_output(denoiser, inputs):
    before = denoiser(**inputs)[0]
    full = Full(Adapter(), dtype=torch.float32)
    full.attach(denoiser)
    assert torch.equal(denoiser(**inputs)[0].detach(), before)
    parameters = full.parameters()
    assert list(parameters) == [name for name, _ in denoiser.named_parameters()]
    denoiser(**inputs)[0].square().mean().backward()
    assert all(p.requires_grad and p.grad is not None and bool(p.grad.any()) for p in parameters.values())


def test_weights_of_another_precision_than_the_trained_one_are_a_fault_of_the_program(denoiser):
    with pytest.raises(AssertionError, match="bfloat16 is trained"):
        Full(Adapter(), dtype=torch.bfloat16).attach(denoiser)


def test_there_is_no_base_beneath_and_no_strength():
    full = attached()
    with pytest.raises(AssertionError, match="no base model"):
        full.disabled()
    with full.scaled(1.0):
        pass
    with pytest.raises(AssertionError, match="no strength"), full.scaled(0.5):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_and_export_are_exact_and_restore(tmp_path, dtype):
    one = attached(dtype, seed=3)
    state, folder = one.state(), one.export(tmp_path, {})
    for saved in (state, Tensors(folder)):
        other = attached(dtype, seed=9)
        assert any(not torch.equal(value, other.state()[name]) for name, value in state.items())
        other.load_state(saved)
        assert all(torch.equal(value, other.state()[name]) for name, value in state.items())
        assert {value.dtype for value in other.state().values()} == {dtype}


def test_a_state_is_a_copy():
    full = attached()
    before = full.state()
    with torch.no_grad():
        for parameter in full.parameters().values():
            parameter.add_(1)
    assert all(torch.equal(value + 1, full.state()[name]) for name, value in before.items())


def test_a_state_of_another_model_is_refused():
    other = Full(Adapter(), dtype=torch.float32)
    other.attach(transformer(layers=(1, 1)))
    with pytest.raises(ConfigError, match="the saved transformer does not fit"):
        attached().load_state(other.state())


# ---- the exported folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_diffusers_opens_the_folder_and_predicts_the_same(tmp_path, inputs, dtype):
    from diffusers import FluxTransformer2DModel

    full = attached(dtype, seed=3)
    folder = full.export(tmp_path, describe(FACTS))
    assert folder == tmp_path / "transformer" and full.check(folder) == []
    inputs = {key: value.to(dtype) if key in FLOATS else value for key, value in inputs.items()}
    fresh = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=dtype)
    with torch.no_grad():
        assert torch.equal(fresh(**inputs)[0], full.denoiser(**inputs)[0])


def test_large_weights_are_written_in_shards_with_an_index(tmp_path, monkeypatch, inputs):
    from diffusers import FluxTransformer2DModel

    monkeypatch.setattr(module, "LARGEST_SHARD", 200_000)
    full = attached(seed=3)
    folder = full.export(tmp_path, describe(FACTS))
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(shards) > 2 and shards[0] == f"diffusion_pytorch_model-00001-of-{len(shards):05}.safetensors"
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards and set(index["weight_map"]) == set(full.parameters())
    sizes = {name: sum(t.numel() * 4 for t in load_file(folder / name).values()) for name in shards}
    assert max(sizes.values()) <= 200_000 and index["metadata"]["total_size"] == sum(sizes.values())
    assert full.check(folder) == []
    with torch.no_grad():
        fresh = FluxTransformer2DModel.from_pretrained(folder)
        assert torch.equal(fresh(**inputs)[0], full.denoiser(**inputs)[0])
    full.load_state(Tensors(folder))


def test_the_files_tell_the_run_and_no_place_and_are_for_everyone(tmp_path):
    full = attached()
    full.denoiser.register_to_config(_name_or_path="/home/someone/models/flux")
    folder = full.export(tmp_path, describe(FACTS))
    found = metadata_of(folder / WEIGHTS)
    assert found["format"] == "pt" and found["ss_steps"] == "10" and found["modelspec.architecture"] == "flux-1-dev"
    assert not any(key.startswith("ss_network") for key in found)
    assert "someone" not in json.dumps(found) + (folder / "config.json").read_text()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    (tmp_path / "other").touch()
    assert modes == {stat.S_IMODE((tmp_path / "other").stat().st_mode)}


@pytest.mark.parametrize(
    ("level", "has", "lacks"), [("minimal", {"ss_steps"}, {"modelspec.title"}), ("none", {"format"}, {"ss_steps"})]
)
def test_lora_metadata_limits_what_is_told(tmp_path, level, has, lacks):
    found = metadata_of(attached(lora_metadata=level).export(tmp_path, describe(FACTS)) / WEIGHTS)
    assert has <= found.keys() and not lacks & found.keys()


def test_a_broken_write_leaves_no_folder(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("simpletuner.adapters.weights.save_file", broken)
    with pytest.raises(OSError, match="No space"):
        attached().export(tmp_path, {})
    assert not (tmp_path / "transformer").exists()


def change(folder, edit):
    """Edits tensors and metadata of the written file."""
    tensors, metadata = load_file(folder / WEIGHTS), metadata_of(folder / WEIGHTS)
    edit(tensors, metadata)
    save_file(tensors, folder / WEIGHTS, metadata)


BROKEN = {
    "nothing": (lambda folder: None, None),
    "a user's own text that looks like a path": (
        lambda folder: change(folder, lambda t, m: m.update({"modelspec.description": "~ mine ~"})),
        None,
    ),
    "one bit": (
        lambda folder: change(folder, lambda t, m: t["proj_out.bias"][:1].view(torch.int32).bitwise_xor_(1)),
        "proj_out.bias does not hold the trained values",
    ),
    "not finite": (
        lambda folder: change(folder, lambda t, m: t["proj_out.bias"].fill_(float("nan"))),
        "proj_out.bias does not hold",
    ),
    "precision": (
        lambda folder: change(folder, lambda t, m: t.update({"proj_out.bias": t["proj_out.bias"].bfloat16()})),
        "proj_out.bias is torch.bfloat16",
    ),
    "missing": (lambda folder: change(folder, lambda t, m: t.pop("proj_out.bias")), "proj_out.bias was trained"),
    "left over": (lambda folder: change(folder, lambda t, m: t.update(more=torch.ones(1))), "more is in the files"),
    "twice": (lambda folder: save_file({"proj_out.bias": torch.zeros(64)}, folder / "b.safetensors"), "in 2 files"),
    "path": (lambda folder: change(folder, lambda t, m: m.update(ss_output_name="/home/x")), "holds a path"),
    "torn": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1]),
        "transformer cannot be read",
    ),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "was trained and is not in the files"),
    "configuration": (lambda folder: (folder / "config.json").write_text("{}"), "config.json is not that of"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_check_finds(tmp_path, case):
    damage, line = BROKEN[case]
    full = attached(seed=3)
    folder = full.export(tmp_path, describe(FACTS))
    damage(folder)
    found = full.check(folder)
    assert (found == []) if line is None else any(line in one for one in found), found
