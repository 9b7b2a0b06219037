"""The exported file: diffusers loads it to the trained output, and the check finds what is wrong with one."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_flux import build, transformer

from simpletuner.adapters.export import FILE, write
from simpletuner.adapters.lora import Lora
from simpletuner.adapters.metadata import describe, public_name
from simpletuner.adapters.names import names
from simpletuner.adapters.options import Adapter
from simpletuner.models import families

RECORD = families()["flux"]
FACTS = {
    "rank": 4,
    "alpha": 9.0,
    "base_name": "/home/someone/models/flux-copy",
    "output_name": "cats",
    "resolution": 1024,
    "step": 10,
    "learning_rate": 1e-4,
    "architecture": "flux-1-dev",
    "licence": "FLUX.1 [dev] Non-Commercial",
    "guidance": "constant 1",
    "tags": {"cats": {"a cat": 3}},
}
CASES = [
    {"lora_rank": 4},
    {"lora_rank": 4, "lora_alpha": 9.0},
    {"lora_rank": 4, "lora_alpha": 9.0, "flux_lora_module_type": "rslora"},
    {"lora_rank": 4, "lora_alpha": 9.0, "lora_format": "comfyui"},
]


def trained(model, preset="all+ffs", dtype=torch.float32, **options) -> Lora:
    """An adapter with weights as after some training."""
    lora = Lora(Adapter(**options), RECORD.targets(preset), seed=1, dtype=dtype)
    lora.attach(model)
    numbers = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in lora.parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=numbers).to(dtype) * 0.1)
    return lora


def metadata_of(path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize("options", CASES)
def test_diffusers_transformer_loads_the_file_to_the_trained_output(tmp_path, inputs, options):
    model = transformer(layers=(1, 2)).requires_grad_(False)
    base = model(**inputs)[0]
    lora = trained(model, preset="ai-toolkit", **options)
    file = lora.export(tmp_path, describe(FACTS))
    assert lora.check(file) == []
    fresh = transformer(layers=(1, 2)).requires_grad_(False)
    if options.get("lora_format") == "comfyui":
        from diffusers import FluxPipeline

        state, alphas = FluxPipeline.lora_state_dict(str(tmp_path), weight_name=FILE, return_alphas=True)
        FluxPipeline.load_lora_into_transformer(state, alphas, fresh)
    else:
        fresh.load_lora_adapter(str(tmp_path), weight_name=FILE)
    with torch.no_grad():
        theirs, ours = fresh(**inputs)[0], model(**inputs)[0]
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert float((ours - base).abs().max()) > 1e-2, "the adapter does something"


@pytest.mark.parametrize("options", CASES[1:])
def test_diffusers_pipeline_loads_the_file_to_the_trained_output(tmp_path, inputs, options):
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(build(tmp_path / "model", layers=(1, 2)))
    model = transformer(layers=(1, 2)).requires_grad_(False)
    lora = trained(model, **options)
    file = lora.export(tmp_path / "out", describe(FACTS))
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    with torch.no_grad():
        torch.testing.assert_close(pipeline.transformer(**inputs)[0], model(**inputs)[0], atol=1e-5, rtol=0)


def test_a_bf16_file_holds_the_trained_change(tmp_path):
    lora = trained(transformer(), dtype=torch.bfloat16, lora_rank=4, lora_alpha=9.0)
    file = lora.export(tmp_path, {})
    assert lora.check(file) == [] and {t.dtype for t in load_file(file).values()} == {torch.bfloat16}


def test_an_export_is_the_same_again(tmp_path):
    lora = trained(transformer(), lora_rank=4, lora_alpha=9.0)
    facts = describe(FACTS)
    one, two = (lora.export(tmp_path / name, facts) for name in "ab")
    ours, theirs = load_file(one), load_file(two)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert metadata_of(one) == metadata_of(two)  # the header's order is the library's and varies
    assert [path.name for path in (tmp_path / "a").iterdir()] == [FILE]


def test_a_reader_that_ignores_alpha_still_gets_the_strength(tmp_path):
    lora = trained(transformer(), preset="mmdit", lora_rank=8, lora_alpha=16.0)
    tensors, state = load_file(lora.export(tmp_path, {})), lora.state()
    name = "single_transformer_blocks.0.attn.to_q"
    theirs = tensors[f"transformer.{name}.lora_B.weight"] @ tensors[f"transformer.{name}.lora_A.weight"]
    ours = 2.0 * state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
    torch.testing.assert_close(theirs, ours)


def test_the_default_file_says_alpha_equals_rank_and_the_comfyui_file_has_alpha_tensors(tmp_path):
    options = {"lora_rank": 4, "lora_alpha": 9.0}
    default = trained(transformer(), **options).export(tmp_path / "a", {})
    peft = json.loads(metadata_of(default)["lora_adapter_metadata"])
    assert peft["transformer.r"] == peft["transformer.lora_alpha"] == 4 and peft["transformer.use_rslora"] is False
    assert not any(key.endswith(".alpha") for key in load_file(default))
    comfy = trained(transformer(), lora_format="comfyui", **options).export(tmp_path / "b", {})
    alphas = [tensor for key, tensor in load_file(comfy).items() if key.endswith(".alpha")]
    assert len(alphas) == len(peft["transformer.target_modules"])
    assert all(alpha.dtype == torch.float32 and alpha == 4 for alpha in alphas)
    assert "lora_adapter_metadata" not in metadata_of(comfy)


def test_metadata_tells_the_run_and_no_place(tmp_path):
    file = trained(transformer(), lora_rank=4, lora_alpha=9.0).export(tmp_path, describe(FACTS))
    found = metadata_of(file)
    expected = {
        "format": "pt",
        "ss_network_dim": "4",
        "ss_network_alpha": "4",
        "ss_sd_model_name": "flux-copy",
        "ss_learning_rate": "0.0001",
        "modelspec.architecture": "flux-1-dev/lora",
        "modelspec.resolution": "1024x1024",
        "modelspec.sai_model_spec": "1.0.1",
        "simpletuner.trained_alpha": "9",
    }
    assert {key: found[key] for key in expected} == expected
    assert "someone" not in json.dumps(found)
    data = file.read_bytes()
    body = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert found["sshs_model_hash"] == body and found["modelspec.hash_sha256"] == "0x" + body


@pytest.mark.parametrize(
    ("level", "has", "lacks"),
    [
        ("minimal", "ss_steps", ("ss_tag_frequency", "modelspec.title", "modelspec.date")),
        ("none", "lora_adapter_metadata", ("ss_steps", "sshs_model_hash", "modelspec.license")),
    ],
)
def test_lora_metadata_limits_what_is_told(tmp_path, level, has, lacks):
    found = metadata_of(trained(transformer(), lora_metadata=level).export(tmp_path, describe(FACTS)))
    assert has in found and not any(key in found for key in lacks)


def test_public_names_are_hub_ids_or_last_parts():
    named = {"owner/name": "owner/name", "/data/models/flux": "flux", "./models/flux": "flux", "a/b/c": "c"}
    assert {place: public_name(place) for place in named} == named


BROKEN = {
    "nothing": (lambda t, m: None, None),
    "alpha_beside_metadata": (lambda t, m: t.update({"transformer.proj_out.alpha": torch.tensor(4.0)}), "both there"),
    "alpha_not_folded": (
        lambda t, m: m.update(lora_adapter_metadata=m["lora_adapter_metadata"].replace('alpha": 4', 'alpha": 32')),
        "lora_alpha differs from r",
    ),
    "half_missing": (lambda t, m: t.pop("transformer.proj_out.lora_B.weight"), "lora_B is missing"),
    "not_finite": (lambda t, m: t["transformer.proj_out.lora_A.weight"].fill_(float("nan")), "not finite"),
    "foreign_key": (lambda t, m: t.update({"lora_unet_img_in.lora_down.weight": torch.ones(1)}), "lora_unet_img_in"),
    "unknown_layer": (lambda t, m: t.update({"transformer.nowhere.lora_A.weight": torch.ones(4, 4)}), "nowhere"),
    "other_strength": (lambda t, m: t["transformer.proj_out.lora_A.weight"].mul_(1.001), "something else"),
    "shape": (lambda t, m: t.update({"transformer.proj_out.lora_A.weight": torch.ones(5, 64)}), "shapes"),
    "zero": (lambda t, m: [v.zero_() for k, v in t.items() if "lora_B" in k], "every lora_B is zero"),
    "path": (lambda t, m: m.update(ss_output_name="/home/someone/x"), "holds a path"),
    "layer_missing": (
        lambda t, m: [t.pop(f"transformer.proj_out.lora_{half}.weight") for half in "AB"],
        "not in the file",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_check_finds(tmp_path, case):
    change, line = BROKEN[case]
    lora = trained(transformer(), lora_rank=4, lora_alpha=9.0)
    file = lora.export(tmp_path, describe(FACTS))
    tensors, metadata = load_file(file), metadata_of(file)
    change(tensors, metadata)
    save_file(tensors, file, metadata)
    found = lora.check(file)
    assert (found == []) if line is None else any(line in one for one in found), found


def test_a_torn_file_is_found(tmp_path):
    lora = trained(transformer(), lora_rank=4)
    file = lora.export(tmp_path, {})
    file.write_bytes(file.read_bytes()[:-1])
    assert "cannot be read" in lora.check(file)[0]


def test_a_fresh_adapter_may_be_exported(tmp_path):
    lora = Lora(Adapter(), RECORD.targets("all"), seed=1, dtype=torch.float32)
    lora.attach(transformer())
    assert lora.check(lora.export(tmp_path, {})) == []


def test_a_killed_write_leaves_the_former_file(tmp_path, monkeypatch):
    lora = trained(transformer(), lora_rank=4)
    before = lora.export(tmp_path, {}).read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    pair = (torch.ones(4, 64), torch.ones(64, 4))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, {"x_embedder": pair}, 1.0, Adapter(lora_rank=4), {})
    assert (tmp_path / FILE).read_bytes() == before


def test_every_linear_layer_of_flux_has_one_name_in_each_dialect():
    model = transformer(layers=(2, 2))
    linear = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    known = [names(path) for path in linear]
    assert None not in known and len(set(known)) == len(linear)
    assert names("single_transformer_blocks.7.proj_mlp") == (
        "single_blocks.7.linear1",
        "lora_unet_single_blocks_7_linear1",
        "diffusion_model.single_blocks.7.linear1",
        3,
    )
    assert names("transformer_blocks.0.attn.norm_q") is None
