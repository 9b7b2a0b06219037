"""The folder around a trained transformer opens in diffusers, wherever its parts come from and however they are cut."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

VAE = "diffusion_pytorch_model"


@pytest.fixture
def copy(folders, tmp_path) -> Path:
    return Path(shutil.copytree(folders[True], tmp_path / "model"))


def assemble(family, target: Path) -> Path:
    """The folder of the family's files, with its own transformer in the place of a trained one."""
    for name, source in family.pipeline_files().items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _ = path.write_text(source) if isinstance(source, str) else shutil.copyfile(source, path)
    shutil.copytree(family.weights.folder("transformer"), target / "transformer")
    return target


def opened(folder: Path):
    from diffusers import FluxPipeline

    return FluxPipeline.from_pretrained(folder)


def same_parts(one, other) -> list[str]:
    """Names of the parts whose weights are equal to the bit."""
    parts = ("vae", "text_encoder", "text_encoder_2", "transformer")
    found = []
    for part in parts:
        mine, theirs = (getattr(pipeline, part).state_dict() for pipeline in (one, other))
        if mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine):
            found.append(part)
    return found


def test_the_base_itself_comes_out_again(folders, make, tmp_path):
    family = make(folders[True])
    again, base = opened(assemble(family, tmp_path / "again")), opened(folders[True])
    assert same_parts(again, base) == ["vae", "text_encoder", "text_encoder_2", "transformer"]
    assert again.scheduler.config == base.scheduler.config
    for name in ("tokenizer", "tokenizer_2"):
        assert getattr(again, name)("a red cat").input_ids == getattr(base, name)("a red cat").input_ids
    assert not any(name.startswith("transformer/") for name in family.pipeline_files())


def test_parts_from_elsewhere_are_the_ones_that_come_along(folders, copy, make, tmp_path):
    weights = load_file(copy / "vae" / f"{VAE}.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, copy / "vae" / f"{VAE}.safetensors")
    family = make(folders[True], pretrained_vae_model_name_or_path=str(copy / "vae"))
    pipeline = opened(assemble(family, tmp_path / "out"))
    assert same_parts(pipeline, opened(folders[True])) == ["text_encoder", "text_encoder_2", "transformer"]
    assert "vae" in same_parts(pipeline, opened(copy))


def test_a_variant_is_found_without_asking_for_it(folders, copy, make, tmp_path):
    for part, stem in (("vae", VAE), ("text_encoder", "model")):
        (copy / part / f"{stem}.safetensors").rename(copy / part / f"{stem}.fp16.safetensors")
    pipeline = opened(assemble(make(copy, variant="fp16"), tmp_path / "out"))
    assert len(same_parts(pipeline, opened(folders[True]))) == 4


@pytest.mark.parametrize("dot", ["", ".fp16"])
def test_shards_come_with_their_index(folders, copy, make, tmp_path, dot):
    tensors = load_file(copy / "text_encoder_2/model.safetensors")
    (copy / "text_encoder_2/model.safetensors").unlink()
    table = {}
    for half in (0, 1):
        file = f"model{dot}-0000{half + 1}-of-00002.safetensors"
        names = sorted(tensors)[half::2]
        save_file({name: tensors[name] for name in names}, copy / "text_encoder_2" / file, {"format": "pt"})
        table |= dict.fromkeys(names, file)
    index = copy / f"text_encoder_2/model.safetensors.index{dot}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": table}))
    pipeline = opened(assemble(make(copy, variant=dot.strip(".") or None), tmp_path / "out"))
    assert len(same_parts(pipeline, opened(folders[True]))) == 4


def test_a_base_without_an_index_gets_one_and_a_stale_one_is_mended(folders, copy, make, tmp_path):
    given = json.loads((copy / "model_index.json").read_text())
    stale = given | {"_name_or_path": "/home/someone/flux", "image_encoder": ["transformers", "CLIPVisionModel"]}
    (copy / "model_index.json").write_text(json.dumps(stale | {"vae": [None, None]}))
    written = json.loads(str(make(copy).pipeline_files()["model_index.json"]))
    assert written == given
    (copy / "model_index.json").unlink()
    assert json.loads(str(make(copy).pipeline_files()["model_index.json"])) == {
        name: value for name, value in given.items() if name != "_diffusers_version"
    }
    assert len(same_parts(opened(assemble(make(copy), tmp_path / "out")), opened(folders[True]))) == 4
