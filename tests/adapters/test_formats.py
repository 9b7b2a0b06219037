"""Every dialect says the same of every layer: to us, to diffusers, and after any number of conversions."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from flux_layers import BLOCKS, OUTSIDE, D, pairs, spelled
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from simpletuner.adapters import delta, fused
from simpletuner.adapters.convert import Order, convert, pairs_of
from simpletuner.adapters.formats import FORMATS
from simpletuner.adapters.formats.source import look
from simpletuner.adapters.names import modules, names, with_dots
from simpletuner.errors import ConfigError, SimpleTunerError

TO_Q = "transformer_blocks.4.attn.to_q"
QKV = {f"transformer_blocks.4.attn.{name}": (D, D) for name in ("to_q", "to_k", "to_v")}
SMALL = {TO_Q: (8, 8), "transformer_blocks.4.attn.to_k": (8, 8), "single_transformer_blocks.1.proj_out": (8, 40)}


def written(path, found, format="diffusers", metadata=None):
    tensors, head = spelled(found, format, metadata)
    save_file(tensors, path, head)
    return path


def converted(source, path, format, dtype="F32", metadata="standard", rank=None):
    return convert(look(source)[0], Order(FORMATS[format], dtype, metadata, rank), [path]).path


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n][h], other[n][h]) for n in one for h in (0, 1))


def head_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def of_diffusers(path):
    """layer -> A and B as diffusers' own reader takes the file, alpha folded."""
    from diffusers import FluxPipeline

    state, alphas = FluxPipeline.lora_state_dict(str(path.parent), weight_name=path.name, return_alphas=True)
    found, end = {}, ".lora_A.weight"
    for key in state:
        if key.startswith("transformer.") and key.endswith(end):
            layer, a = key.removeprefix("transformer.").removesuffix(end), state[key]
            scale = float((alphas or {}).get(f"transformer.{layer}.alpha", a.shape[0])) / a.shape[0]
            found[layer] = (a * scale, state[f"transformer.{layer}.lora_B.weight"])
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_diffusers_reads_the_same_change_from_every_dialect(tmp_path, format):
    """At true sizes, which its converters take for granted. Outside of the blocks it passes over fused dialects."""
    ours = pairs()
    file = converted(written(tmp_path / "a.safetensors", ours), tmp_path / "b.safetensors", format)
    theirs = of_diffusers(file)
    assert theirs.keys() == (BLOCKS if FORMATS[format].original else BLOCKS | OUTSIDE).keys()
    for name, pair in theirs.items():
        assert delta.difference(pair, ours[name]) <= 1e-6 * delta.norm(ours[name]), name


@pytest.mark.parametrize("format", FORMATS)
def test_there_and_back_is_the_same_to_the_bit(tmp_path, format):
    ours = pairs()
    there = converted(written(tmp_path / "a.safetensors", ours), tmp_path / "b.safetensors", format)
    assert look(there)[0].dialect.name == format and look(there)[1] == []
    assert same(pairs_of(look(there)[0]), ours)
    back = converted(there, tmp_path / "c.safetensors", "diffusers")
    again = converted(back, tmp_path / "d.safetensors", format)
    one, two = load_file(there), load_file(again)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert head_of(there) == head_of(again)


def test_the_last_modulation_has_its_halves_swapped_in_the_original_names(tmp_path):
    ours = pairs({"norm_out.linear": (16, 8)})
    tensors, _ = spelled(ours, "bfl")
    b = tensors["diffusion_model.final_layer.adaLN_modulation.1.lora_up.weight"]
    assert torch.equal(b, torch.cat([ours["norm_out.linear"][1][8:], ours["norm_out.linear"][1][:8]]))
    assert same(pairs_of(look(written(tmp_path / "a.safetensors", ours, "bfl"))[0]), ours)


def test_a_fused_layer_has_the_rank_of_all_its_parts_and_zeros_where_nothing_was_trained():
    tensors, _ = spelled(pairs({TO_Q: (8, 8), "transformer_blocks.4.attn.to_v": (8, 8)}), "kohya")
    start = "lora_unet_double_blocks_4_img_attn_qkv."
    a, b = tensors[start + "lora_down.weight"], tensors[start + "lora_up.weight"]
    assert a.shape == (6, 8) and b.shape == (24, 6) and float(tensors[start + "alpha"]) == 6
    assert not a[2:4].any() and not b[8:16].any() and a[:2].any() and b[16:].any()


def test_a_fused_layer_that_was_trained_as_one_gives_each_part_the_whole_a(tmp_path):
    numbers = torch.Generator().manual_seed(1)
    a, b = torch.randn(3, 8, generator=numbers), torch.randn(24, 3, generator=numbers)
    start = "lora_unet_double_blocks_4_img_attn_qkv."
    tensors = {start + "lora_down.weight": a, start + "lora_up.weight": b, start + "alpha": torch.tensor(6.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = pairs_of(look(tmp_path / "a.safetensors")[0])
    assert list(found) == list(QKV)
    whole = torch.cat([down.T.matmul(up.T).T for down, up in found.values()])
    torch.testing.assert_close(whole, 2 * b @ a)


def test_parts_of_different_rank_share_a_layer_without_loss(tmp_path):
    ours = pairs({TO_Q: (8, 8)}) | pairs({"transformer_blocks.4.attn.to_k": (8, 8)}, rank=5)
    for format in FORMATS:
        back = pairs_of(look(written(tmp_path / f"{format}.safetensors", ours, format))[0])
        assert all(delta.difference(back[name], ours[name]) <= 1e-6 * delta.norm(ours[name]) for name in ours)


@pytest.mark.parametrize("scale", [0.5, 2.0, 1.7])
@pytest.mark.parametrize("format", ["comfyui", "kohya", "bfl"])
def test_alpha_is_folded_in_and_afterwards_is_the_rank(tmp_path, format, scale):
    ours = pairs(SMALL)
    tensors, head = spelled(ours, format)
    changed = {key: t * scale if key.endswith(".alpha") else t for key, t in tensors.items()}
    save_file(changed, tmp_path / "a.safetensors", head)
    for number, into in enumerate(FORMATS):
        back = load_file(file := converted(tmp_path / "a.safetensors", tmp_path / f"{number}.safetensors", into))
        ranks = {
            key.rpartition(".lora_")[0]: t.shape[0] for key, t in back.items() if key.endswith(("A.weight", "n.weight"))
        }
        assert all(float(t) == ranks[key.removesuffix(".alpha")] for key, t in back.items() if key.endswith(".alpha"))
        for name, pair in pairs_of(look(file)[0]).items():
            wanted = (ours[name][0] * scale, ours[name][1])
            assert delta.difference(pair, wanted) <= 1e-6 * delta.norm(wanted)


def test_the_scale_of_peft_is_read_from_the_metadata(tmp_path):
    tensors, head = spelled(pairs(SMALL))
    said = json.loads(head["lora_adapter_metadata"]) | {"transformer.lora_alpha": 8}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(said)})
    assert same(pairs_of(look(tmp_path / "a.safetensors")[0]), {n: (a * 4, b) for n, (a, b) in pairs(SMALL).items()})


@pytest.mark.parametrize(
    ("change", "dialect"),
    [
        (lambda key: key.replace("transformer.", "base_model.model.", 1), "diffusers"),
        (lambda key: key.replace("transformer.", "", 1), "diffusers"),
        (lambda key: key.replace(".weight", ".default.weight"), "diffusers"),
        (
            lambda key: "lora_transformer_"
            + key.removeprefix("transformer.").replace(".", "_", key.count(".") - 3)
            .replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
            "onetrainer",
        ),
    ],
    ids=["peft", "bare", "named", "onetrainer"],
)  # fmt: skip
def test_other_spellings_of_diffusers_names_are_read(tmp_path, change, dialect):
    tensors, _ = spelled(pairs(SMALL))
    save_file({change(key): tensor for key, tensor in tensors.items()}, tmp_path / "a.safetensors")
    source, _ = look(tmp_path / "a.safetensors")
    assert source.dialect.name == dialect and same(pairs_of(source), pairs(SMALL))


def test_fals_names_are_read_as_the_originals(tmp_path):
    tensors, _ = spelled(pairs(SMALL), "bfl")
    renamed = {
        key.replace("diffusion_model.", "base_model.model.")
        .replace("lora_down", "lora_A")
        .replace("lora_up", "lora_B"): t
        for key, t in tensors.items()
        if not key.endswith(".alpha")
    }
    save_file(renamed, tmp_path / "a.safetensors")
    source, _ = look(tmp_path / "a.safetensors")
    assert source.dialect.name == "bfl" and same(pairs_of(source), pairs(SMALL))


def test_diffusers_and_we_read_the_same_from_xlabs_names(tmp_path):
    numbers = torch.Generator().manual_seed(3)
    sizes = {
        "double_blocks.4.processor.qkv_lora1": 3 * D, "double_blocks.4.processor.proj_lora2": D,
        "double_blocks.4.processor.qkv_lora2": 3 * D, "single_blocks.17.processor.qkv_lora": 3 * D,
    }  # fmt: skip
    tensors = {f"{name}.down.weight": torch.randn(2, D, generator=numbers) for name in sizes}
    tensors |= {f"{name}.up.weight": torch.randn(out, 2, generator=numbers) for name, out in sizes.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    ours, theirs = pairs_of(look(tmp_path / "a.safetensors")[0]), of_diffusers(tmp_path / "a.safetensors")
    assert ours.keys() == theirs.keys() and len(ours) == 10
    assert all(delta.difference(ours[name], theirs[name]) <= 1e-6 * delta.norm(ours[name]) for name in ours)


def test_every_layer_of_the_original_model_is_found_again_by_each_name():
    for name in BLOCKS | OUTSIDE:
        known = names(name)
        assert name in modules(known.bfl) and with_dots(known.kohya.removeprefix("lora_unet_")) == known.bfl
        assert with_dots(name.replace(".", "_")) == name
    assert modules("double_blocks.0.nothing") == modules("elsewhere") == () and with_dots("elsewhere") == ""


# ---- what is refused


def one(name, *shape):
    return {name: torch.ones(*shape)}


PAIR = {"transformer.proj_out.lora_A.weight": torch.ones(2, 8), "transformer.proj_out.lora_B.weight": torch.ones(8, 2)}
WRONG = {
    "dora": (PAIR | one("transformer.proj_out.lora_magnitude_vector", 8), "is a DoRA"),
    "lokr": (one("lycoris_transformer_blocks_0_attn_to_q.lokr_w1", 2, 2), "is a LoKr"),
    "control": (one("double_blocks.0.img_attn.norm.query_norm.scale", 8), "is a control model"),
    "biases": (PAIR | one("transformer.proj_out.lora_B.bias", 8), "with biases"),
    "two dialects": (PAIR | one("lora_unet_img_in.lora_down.weight", 2, 8), "mixes diffusers' names with kohya's"),
    "unknown layer": (PAIR | one("transformer.nowhere.lora_A.weight", 2, 8), "no layer of Flux"),
    "another model": (one("lora_unet_down_blocks_0_attentions_0.lora_down.weight", 2, 8), "none of its 1 tensors"),
    "only text": (one("text_encoder.text_model.encoder.layers.0.q_proj.lora_A.weight", 2, 8), "none of its 0 tensors"),
    "half": (one("transformer.proj_out.lora_A.weight", 2, 8), "not a whole LoRA"),
    "shapes": (PAIR | one("transformer.proj_out.lora_B.weight", 8, 3), "not a whole LoRA"),
    "fused shapes": (
        one("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", 2, 8)
        | one("lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight", 25, 2),
        "not a whole LoRA",
    ),
    "twice": (PAIR | one("proj_out.lora_A.weight", 2, 8), "not a whole LoRA"),
    "alpha": (PAIR | {"transformer.proj_out.alpha": torch.tensor(float("nan"))}, "not a whole LoRA"),
    "precision": ({key: tensor.double() for key, tensor in PAIR.items()}, "not a whole LoRA"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_a_plain_lora_is_refused_by_name(tmp_path, case):
    tensors, words = WRONG[case]
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError) as caught:
        look(tmp_path / "a.safetensors")
    assert words in str(caught.value) and caught.value.problems[0].fix


@pytest.mark.parametrize("half", "AB")
def test_a_value_that_is_not_finite_is_refused_by_its_key(tmp_path, half):
    tensors, head = spelled(pairs(SMALL))
    key = f"transformer.{TO_Q}.lora_{half}.weight"
    tensors[key][0, 0] = float("nan")
    save_file(tensors, tmp_path / "a.safetensors", head)
    with pytest.raises(ConfigError, match=f"{key} holds NaN"):
        converted(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya")
    assert not (tmp_path / "b.safetensors").exists()


def test_an_adapter_without_effect_is_refused(tmp_path):
    nothing = {name: (a, b * 0) for name, (a, b) in pairs(SMALL).items()}
    with pytest.raises(ConfigError, match="changes nothing"):
        converted(written(tmp_path / "a.safetensors", nothing), tmp_path / "b.safetensors", "kohya")


def test_text_encoders_are_left_out_and_named(tmp_path):
    key = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight"
    save_file(spelled(pairs(SMALL), "kohya")[0] | one(key, 2, 8), tmp_path / "a.safetensors")
    source, found = look(tmp_path / "a.safetensors")
    assert same(pairs_of(source), pairs(SMALL)) and key in found[0].message and found[0].severity == "notice"


@pytest.mark.parametrize(("factor", "told"), [(1, True), (3, False)])
def test_sd_scripts_split_layers_with_the_alpha_of_one_part_are_named(tmp_path, factor, told):
    tensors, _ = spelled(pairs(QKV | {"transformer_blocks.4.ff.net.2": (8, 8)}), "kohya")
    tensors["lora_unet_double_blocks_4_img_attn_qkv.alpha"] = torch.tensor(2.0 * factor)
    save_file(tensors, tmp_path / "a.safetensors")
    assert any("split_qkv" in problem.message for problem in look(tmp_path / "a.safetensors")[1]) is told


# ---- precision, rank, metadata


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_a_smaller_precision_keeps_the_change(tmp_path, dtype, scale):
    """In fp16 the smallest numbers would be lost; they are shared between the two halves."""
    ours = pairs(SMALL, scale=scale)
    file = converted(written(tmp_path / "a.safetensors", ours), tmp_path / "b.safetensors", "kohya", dtype)
    for name, pair in pairs_of(look(file)[0]).items():
        assert delta.difference(pair, ours[name]) <= 2**-8 * delta.norm(ours[name])
    assert {t.dtype for key, t in load_file(file).items() if not key.endswith("alpha")} == {
        {"BF16": torch.bfloat16, "F16": torch.float16}[dtype]
    }


def test_numbers_that_fp16_cannot_hold_are_refused(tmp_path):
    ours = {name: (a * 1e9, b * 1e9) for name, (a, b) in pairs(SMALL).items()}
    with pytest.raises(ConfigError, match="too large for float16"):
        converted(written(tmp_path / "a.safetensors", ours), tmp_path / "b.safetensors", "kohya", "F16")


def test_another_rank_is_the_nearest_there_is(tmp_path):
    """Eckart and Young, against torch's singular values of the whole product."""
    ours = pairs(SMALL, rank=6)
    file = written(tmp_path / "a.safetensors", ours)
    done = convert(look(file)[0], Order(FORMATS["diffusers"], "F32", "none", 2), [tmp_path / "b.safetensors"])
    found = pairs_of(look(done.path)[0])
    for name, (a, b) in ours.items():
        u, s, v = torch.linalg.svd((b @ a).double(), full_matrices=False)
        nearest = (u[:, :2] * s[:2]) @ v[:2]
        torch.testing.assert_close((found[name][1] @ found[name][0]).double(), nearest, atol=1e-4, rtol=1e-4)
        assert done.kept[name] == pytest.approx(float((s[:2] ** 2).sum() / (s**2).sum()))
    assert done.rank == 2


def test_a_higher_rank_loses_nothing(tmp_path):
    file = written(tmp_path / "a.safetensors", pairs(SMALL))
    done = convert(look(file)[0], Order(FORMATS["diffusers"], "F32", "none", 7), [tmp_path / "b.safetensors"])
    assert done.rank == 7 and min(done.kept.values()) == pytest.approx(1)
    assert all(
        delta.difference(pair, pairs(SMALL)[name]) <= 1e-5 * delta.norm(pair)
        for name, pair in pairs_of(look(done.path)[0]).items()
    )


def test_the_norm_of_a_difference_is_that_of_the_whole_products():
    (a, b), (a_2, b_2) = pairs({"x_embedder": (9, 7)}, rank=3)["x_embedder"], (torch.ones(2, 7), torch.ones(9, 2))
    assert delta.difference((a, b), (a_2, b_2)) == pytest.approx(float((b @ a - b_2 @ a_2).norm()), rel=1e-6)


SAID = {
    "ss_steps": "40",
    "ss_network_dim": "2",
    "ss_tag_frequency": '{"cats": 3}',
    "ss_dataset_dirs": '{"/home/someone": 1}',
    "ss_output_name": "/home/someone/cats",
    "modelspec.title": "cats",
    "modelspec.implementation": "diffusers",
    "simpletuner.trained_alpha": "9",
    "workflow": "someone's",
}


@pytest.mark.parametrize(
    ("level", "has", "lacks"),
    [
        ("standard", {"ss_steps", "ss_tag_frequency", "modelspec.title", "simpletuner.trained_alpha"}, set()),
        ("minimal", {"ss_steps", "simpletuner.trained_alpha"}, {"ss_tag_frequency", "modelspec.title"}),
        ("none", {"format"}, {"ss_steps", "sshs_model_hash"}),
    ],
)
def test_metadata_says_what_is_true_of_the_new_file_and_no_place(tmp_path, level, has, lacks):
    save_file(spelled(pairs(SMALL))[0], tmp_path / "a.safetensors", SAID)
    found = head_of(converted(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya", metadata=level))
    assert has <= found.keys() and not lacks & found.keys()
    assert "someone" not in json.dumps(found) and "lora_adapter_metadata" not in found
    if level != "none":
        assert found["ss_network_dim"] == found["ss_network_alpha"] == "6"
        assert found["modelspec.implementation"].endswith("black-forest-labs/flux")


# ---- the check


def test_a_wrong_conversion_never_gets_its_name(tmp_path, monkeypatch):
    file = written(tmp_path / "a.safetensors", pairs(SMALL))
    join = fused.join
    monkeypatch.setattr(fused, "join", lambda *args: tuple(half * 1.001 for half in join(*args)))
    with pytest.raises(SimpleTunerError, match="failed its check") as caught:
        converted(file, tmp_path / "b.safetensors", "kohya")
    assert caught.value.exit_code == 1 and len(caught.value.problems[0].details) == len(SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_is_looked_at_without_torch(tmp_path):
    written(tmp_path / "a.safetensors", pairs(SMALL), "kohya")
    program = (
        "import sys; from pathlib import Path; from simpletuner.adapters.formats.source import look\n"
        "assert look(Path(sys.argv[1]))[0].layers and not {'torch', 'safetensors'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.safetensors")], check=True)
