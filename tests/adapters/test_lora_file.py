"""A LoRA file read back: the same output as the adapter it was written from, and clear words for every other file."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_flux import transformer

from simpletuner.adapters import lora_file
from simpletuner.adapters.lora import Lora
from simpletuner.adapters.options import Adapter
from simpletuner.errors import ConfigError
from simpletuner.models import families

TO_Q = "transformer_blocks.0.attn.to_q"


@pytest.fixture
def exported(tmp_path, denoiser):
    """exported(**options): a trained adapter's file, and the model with it."""

    def make(preset="all+ffs", **options):
        lora = Lora(Adapter(lora_rank=4, **options), families()["flux"].targets(preset), seed=1, dtype=torch.float32)
        lora.attach(denoiser)
        numbers = torch.Generator().manual_seed(2)
        for parameter in lora.parameters().values():
            parameter.data += torch.randn(parameter.shape, generator=numbers) * 0.1
        return lora.export(tmp_path, {"simpletuner.flavour": "nano"}), denoiser

    return make


def with_file(path):
    """A fresh model with the file's adapter."""
    model = transformer(layers=(1, 2)).requires_grad_(False)
    file = lora_file.read(path)
    lora = Lora.of_file(file)
    lora.attach(model)
    lora.load_state(file.state())
    return model, lora


def layers(model):
    return {name: tuple(m.weight.shape) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


def pair(module=TO_Q, rank=4, out=64, into=64, dtype=torch.float32, **more):
    """The tensors of one layer's LoRA, as a file holds them."""
    numbers = torch.Generator().manual_seed(3)
    tensors = {
        f"transformer.{module}.lora_A.weight": torch.randn(rank, into, generator=numbers).to(dtype),
        f"transformer.{module}.lora_B.weight": torch.randn(out, rank, generator=numbers).to(dtype),
    }
    return tensors | {f"transformer.{module}.{name}": value for name, value in more.items()}


@pytest.mark.parametrize(
    "options",
    [{}, {"lora_alpha": 8.0}, {"lora_alpha": 8.0, "lora_format": "comfyui"}, {"flux_lora_module_type": "rslora"}],
)
def test_a_file_of_ours_gives_the_output_of_the_adapter_it_came_from_to_the_bit(exported, inputs, options):
    """The scales here are powers of two: folding them into A loses nothing."""
    path, trained = exported(**options)
    model, _ = with_file(path)
    assert torch.equal(model(**inputs)[0], trained(**inputs)[0])


def test_the_base_is_exactly_the_base_with_the_adapter_off(exported, inputs):
    base = transformer(layers=(1, 2))(**inputs)[0]
    model, lora = with_file(exported()[0])
    with lora.disabled():
        assert torch.equal(model(**inputs)[0], base)
    assert not torch.equal(model(**inputs)[0], base)


def test_a_layer_named_like_the_end_of_another_is_not_taken_for_it(tmp_path):
    """The last layer is proj_out, and so are the last words of every single block's."""
    save_file(pair("proj_out"), tmp_path / "x.safetensors")
    _, lora = with_file(tmp_path / "x.safetensors")
    assert list(lora.layers) == ["proj_out"]


@pytest.mark.parametrize(
    ("alpha", "peft", "scale"),
    [
        (None, None, 1.0),  # nothing is said: alpha is the rank
        (None, {"lora_alpha": 8, "r": 4}, 2.0),
        (None, {"lora_alpha": 8, "r": 4, "use_rslora": True}, 4.0),
        (None, {"lora_alpha": 8, "r": 4, "alpha_pattern": {TO_Q: 2}}, 0.5),
        (1.0, None, 0.25),
    ],
)
def test_alpha_is_folded_in_wherever_it_is_written(tmp_path, alpha, peft, scale):
    tensors = pair(**({"alpha": torch.tensor(alpha)} if alpha else {}))
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in peft.items()})} if peft else None
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    state = lora_file.read(tmp_path / "x.safetensors").state()
    assert torch.equal(state[f"{TO_Q}.lora_A.weight"], tensors[f"transformer.{TO_Q}.lora_A.weight"] * scale)
    assert torch.equal(state[f"{TO_Q}.lora_B.weight"], tensors[f"transformer.{TO_Q}.lora_B.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_precision_is_that_of_the_file(tmp_path, dtype):
    save_file(pair(dtype=dtype), tmp_path / "x.safetensors")
    _, lora = with_file(tmp_path / "x.safetensors")
    assert {parameter.dtype for parameter in lora.parameters().values()} == {dtype}


def test_a_rank_beyond_that_of_our_own_options_is_read(tmp_path):
    save_file(pair(rank=300), tmp_path / "x.safetensors")
    assert with_file(tmp_path / "x.safetensors")[1].options.lora_rank == 300


def test_a_lora_of_another_model_is_told_by_its_layers(exported, tmp_path):
    path, _ = exported()
    lora_file.read(path).check(layers(transformer(layers=(1, 2))), "tiny")
    with pytest.raises(ConfigError) as smaller:
        lora_file.read(path).check(layers(transformer(layers=(1, 1))), "tiny")
    (problem,) = smaller.value.problems
    fits, total = 18, 23  # five of them are in the block that is not there
    assert problem.message == f"{path} is not a LoRA for tiny: {fits} of its {total} layers fit, rank 4"
    assert "single_transformer_blocks.1.attn.to_q is no layer of the model" in problem.details
    assert "which is nano" in problem.fix
    save_file(pair(into=128), tmp_path / "wide.safetensors")
    with pytest.raises(ConfigError) as wide:
        lora_file.read(tmp_path / "wide.safetensors").check(layers(transformer()), "tiny")
    assert "0 of its 1 layers fit" in wide.value.problems[0].message
    assert wide.value.problems[0].details == (f"{TO_Q} is [64, 64] here, and [64, 128] in the file",)


def test_files_that_are_no_lora_are_told_for_what_they_are(tmp_path):
    def said(name, tensors=None, content=None):
        path = tmp_path / name
        if tensors:
            save_file(tensors, path)
        elif content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError) as error:
            lora_file.read(path)
        (problem,) = error.value.problems
        assert problem.fix and (name in problem.message or name == "")
        return problem.message

    one = torch.zeros(4, 4)
    assert "no file" in said("none.safetensors")
    assert "is a folder" in said("")
    assert "pickle" in said("x.pt", content=b"")
    assert "4 of its 4 keys" in said("model.safetensors", {f"blocks.{i}.weight": one + i for i in range(4)})
    assert "kohya's names" in said("k.safetensors", {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": one})
    assert "DoRA's names" in said("d.safetensors", pair() | {f"transformer.{TO_Q}.lora_magnitude_vector": one})
    assert "lora_B missing" in said("h.safetensors", {f"transformer.{TO_Q}.lora_A.weight": one})
    assert "ranks 2, 4" in said("r.safetensors", pair() | pair("proj_out", rank=2))
    assert "F64" in said("f.safetensors", pair(dtype=torch.float64))
    save_file(pair(), tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for content in (
        b"",
        b"\x08",
        b"{}",
        whole[:40],
        whole[:-1],
        whole + b"x",
        b"\xff" * 9,
        b"\x02" + b"\0" * 7 + b"[]",
    ):
        assert "not a whole safetensors file" in said("torn.safetensors", content=content)


def test_the_header_is_read_without_torch(tmp_path):
    save_file(pair(), tmp_path / "x.safetensors")
    code = (
        "import sys, pathlib\nfrom simpletuner.adapters import lora_file\n"
        "print(lora_file.read(pathlib.Path(sys.argv[1])).rank, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.safetensors"], capture_output=True, text=True)
    assert done.stdout == "4 False\n", done.stderr


def test_the_state_of_a_file_is_what_the_file_holds(exported):
    path, _ = exported()
    held = load_file(path)
    assert all(torch.equal(held["transformer." + key], value) for key, value in lora_file.read(path).state().items())
