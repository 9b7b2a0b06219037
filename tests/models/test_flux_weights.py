"""Where parts are looked for, what is refused, what a fingerprint notices. No network: the hub is a cache on disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from simpletuner.errors import AccessError, ConfigError, RemoteError
from simpletuner.models import digests, families
from simpletuner.models.places import Place

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(folders, tmp_path) -> Path:
    """A copy of the tiny model that the test may change."""
    return Path(shutil.copytree(folders[True], tmp_path / "model"))


def shard(folder: Path, parts: int = 3) -> None:
    """Replaces the one weight file by shards and their index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    table = {}
    for i in range(parts):
        file = f"diffusion_pytorch_model-{i + 1:05}-of-{parts:05}.safetensors"
        save_file({name: tensors[name] for name in names[i::parts]}, folder / file)
        table |= dict.fromkeys(names[i::parts], file)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def equal(one, other) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_shards_load_as_one_file_does(folders, copy, make):
    shard(copy / "transformer")
    family = make(copy)
    family.prepare()
    assert equal(family.load_denoiser("cpu"), make(folders[True]).load_denoiser("cpu"))


def test_a_missing_shard_is_named(copy, make):
    shard(copy / "transformer")
    (copy / "transformer" / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ConfigError) as caught:
        make(copy).prepare()
    assert caught.value.problems[0].details == ("diffusion_pytorch_model-00002-of-00003.safetensors",)


def test_every_missing_part_is_listed_at_once(copy, make):
    shutil.rmtree(copy / "vae")
    shutil.rmtree(copy / "tokenizer_2")
    (copy / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(ConfigError) as caught:
        make(copy).prepare()
    text = " ".join(problem.message for problem in caught.value.problems)
    assert len(caught.value.problems) == 3 and caught.value.exit_code == 2
    assert "vae/config.json" in text and "tokenizer_2" in text and "text_encoder" in text


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: t.pop("proj_out.weight"), "missing: proj_out.weight"),
        (lambda t: t.update(stray=torch.zeros(1)), "left over: stray"),
        (
            lambda t: t.update({"proj_out.bias": torch.zeros(3)}),
            "shape: proj_out.bias is [3], the configuration says [64]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_an_error_with_the_name(copy, make, change, line):
    tensors = load_file(copy / "transformer" / WEIGHTS)
    change(tensors)
    save_file(tensors, copy / "transformer" / WEIGHTS)
    with pytest.raises(ConfigError) as caught:
        make(copy).load_denoiser("cpu")
    assert caught.value.problems[0].details == (line,)


def test_a_tensor_found_twice_is_an_error(copy, make):
    folder = copy / "transformer"
    shard(folder)
    extra = {"proj_out.bias": torch.zeros(64)}
    for file in sorted(folder.glob("*-of-*.safetensors"))[:2]:
        save_file(load_file(file) | extra, file)
    with pytest.raises(ConfigError) as caught:
        make(copy).load_denoiser("cpu")
    assert any(line.startswith("found twice: proj_out.bias") for line in caught.value.problems[0].details)


def test_a_torn_weight_file_is_an_error_with_its_name(copy, make):
    path = copy / "transformer" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=WEIGHTS):
        make(copy).load_denoiser("cpu")


def test_weights_are_loaded_in_the_dtype_asked_for(folders, make):
    family = make(folders[True])
    family.base_dtype = torch.bfloat16
    assert {p.dtype for p in family.load_denoiser("cpu").parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("word", ["none", "null", "None"])
def test_a_separate_transformer_may_lie_in_a_root(folders, copy, make, word):
    shutil.move(copy / "transformer", copy.parent / "alone")
    alone = {"pretrained_transformer_model_name_or_path": str(copy.parent / "alone")}
    family = make(copy, **alone, pretrained_transformer_subfolder=word)
    family.prepare()
    assert equal(family.load_denoiser("cpu"), make(folders[True]).load_denoiser("cpu"))
    with pytest.raises(ConfigError, match="pretrained_transformer_model_name_or_path"):
        make(copy, **alone).prepare()


def test_vae_and_t5_may_come_from_elsewhere(folders, copy, make):
    shutil.move(copy / "vae", copy.parent / "vae")  # files in the root
    shutil.rmtree(copy / "text_encoder_2")
    family = make(
        copy,
        pretrained_vae_model_name_or_path=str(copy.parent / "vae"),
        pretrained_t5_model_name_or_path=str(folders[True]),  # in text_encoder_2 of a whole model
    )
    family.prepare()
    assert equal(family.load_vae("cpu"), make(folders[True]).load_vae("cpu"))
    assert family.text_fingerprint() == make(folders[True]).text_fingerprint()


@pytest.mark.parametrize("name", ["flux1-dev.safetensors", "model.ckpt", "model.pt", "a/model.bin", "flux.gguf"])
def test_single_files_and_pickles_are_refused_with_a_reason(make, name):
    with pytest.raises(ConfigError, match="pretrained_model_name_or_path"):
        make(name).prepare()


def test_a_pickle_beside_missing_safetensors_is_named(copy, make):
    (copy / "vae" / WEIGHTS).rename(copy / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(ConfigError) as caught:
        make(copy).prepare()
    assert "pickle" in caught.value.problems[0].details[0]


def test_a_path_that_is_no_folder_is_not_taken_for_a_hub_name(tmp_path):
    for name in (str(tmp_path / "nowhere"), "./models/flux", "flux"):
        with pytest.raises(ConfigError, match="no folder"):
            Place(name, "pretrained_model_name_or_path")


def test_a_fingerprint_follows_content_precision_and_length(copy, make):
    def prints(**model):
        family = make(copy, **model)
        return family.vae_fingerprint(), family.text_fingerprint(), family.denoiser_fingerprint()

    first = prints()
    assert first == prints() and len({*first}) == 3 and all(len(p) == 64 for p in first)
    assert prints(tokenizer_max_length=20)[1] != first[1] and prints(tokenizer_max_length=20)[0] == first[0]
    assert prints(t5_padding="zero")[1] != first[1]
    other = make(copy)
    other.vae_dtype = torch.bfloat16
    assert other.vae_fingerprint() != first[0]
    path = copy / "vae" / WEIGHTS
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    changed = prints()
    assert changed[0] != first[0] and changed[1:] == first[1:]


def test_a_file_is_hashed_once_and_again_when_it_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMPLETUNER_STATE_DIR", str(tmp_path / "state"))
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"one")
    first = digests.digests([file])[0]
    memory = json.loads(digests.memory_path().read_text())
    memory[str(file)][2] = "remembered"
    digests.memory_path().write_text(json.dumps(memory))
    assert digests.digests([file])[0] == "remembered"
    file.write_bytes(b"two!")
    assert digests.digests([file])[0] not in ("remembered", first)
    digests.memory_path().write_text("torn{")
    file.write_bytes(b"one")
    assert digests.digests([file])[0] == first


def hub_cache(folder: Path, root: Path, name: str) -> Path:
    """The hub's cache as it is after a download of `folder` as repository `name`."""
    repository = root / ("models--" + name.replace("/", "--"))
    snapshot = repository / "snapshots" / ("a" * 40)
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = repository / "blobs" / f"{number:064x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    return root


def test_a_hub_id_is_read_from_the_hubs_cache_and_its_blobs_name_the_content(folders, tmp_path, make, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cache = hub_cache(folders[True], tmp_path / "hub", "owner/tiny")
    family = make("owner/tiny", cache_dir=str(cache))
    family.prepare()
    assert equal(family.load_denoiser("cpu"), make(folders[True]).load_denoiser("cpu"))
    blob = (cache / "models--owner--tiny/snapshots" / ("a" * 40) / "vae" / WEIGHTS).resolve()
    assert digests.digests([blob])[0] == blob.name
    with pytest.raises(RemoteError) as caught:
        make("owner/other", cache_dir=str(cache)).prepare()
    assert caught.value.exit_code == 8


def test_a_gated_repository_says_where_to_accept_and_how_to_log_in(monkeypatch):
    from huggingface_hub.errors import GatedRepoError

    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    response = SimpleNamespace(headers={}, request=None, status_code=403)  # all that the hub's error reads of one
    error = Place("owner/gated", "model_flavour")._explained(GatedRepoError("no", response=response))
    assert isinstance(error, AccessError) and error.exit_code == 4
    assert "https://mirror.example/owner/gated" in error.problems[0].fix and "hf auth login" in error.problems[0].fix


def test_families_are_listed_without_torch():
    fronts = "simpletuner.models.options, simpletuner.adapters.options, simpletuner.diffusion.options"
    code = (
        f"import sys, {fronts}; from simpletuner.models import families; families(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_record_names_what_the_quantiser_must_leave(folders, make):
    import fnmatch

    modules = [name for name, _ in make(folders[True]).load_denoiser("cpu").named_modules()]
    for pattern in families()["flux"].keep_precise:
        assert fnmatch.filter(modules, pattern), pattern
