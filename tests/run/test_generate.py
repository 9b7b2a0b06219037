"""Pictures of a run after the run: exactly its last validation images, exactly the base, and never over a file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import small
from click.testing import CliRunner
from PIL import Image

from simpletuner.cli.main import program
from simpletuner.errors import HardwareError, SimpleTunerError
from simpletuner.events import read_lines
from simpletuner.memory.stream import Streamed

PROMPT = "photo of a red cat"
FETCH = Streamed.fetch
VALIDATION = {
    "validation_disable": False, "validation_prompt": PROMPT, "validation_num_inference_steps": 2,
    "validation_resolution": "64x64,96x64", "validation_step_interval": 2, "num_validation_images": 2,
    "max_train_steps": 4, "seed": 11, "validation_guidance_real": 2.0, "validation_negative_prompt": "blue",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, model, pictures):
    """The folder of a finished run. Its scale of 3/4 cannot be folded into the exported file without rounding."""
    home = tmp_path_factory.mktemp("generate")
    done = small.train(small.configure(home, model, pictures, **VALIDATION, lora_alpha=3.0))
    done.config.write(home / "out/config.resolved.json")  # as the command does before it starts the trainer
    return home / "out"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def generate(*words) -> list[Path]:
    """The files that the command names, in order."""
    done = CliRunner().invoke(program, ["generate", *map(str, words)], catch_exceptions=False)
    return [Path(line) for line in done.stdout.splitlines()]


def opened(path):
    with Image.open(path) as image:
        image.load()
        return np.asarray(image), image.text


def same(one, other) -> bool:
    return np.array_equal(opened(one)[0], opened(other)[0])


def validation(run, step=4):
    return [run / record["file"] for record in read_lines(run / "validation_media.jsonl") if record["step"] == step]


def base(run):
    names = ("64x64", "64x64_1", "96x64", "96x64_1")
    return [run / "benchmarks/base_model" / f"validation_{name}.png" for name in names]


def test_a_prompt_of_the_run_gives_the_last_validation_image_to_the_byte(run):
    made = generate("--run", run, "--prompt", PROMPT, "--count", 2)
    kept = [path for path in validation(run) if "_validation_" in path.name]
    assert len(made) == len(kept) == 4
    assert [path.read_bytes() for path in made] == [path.read_bytes() for path in kept]


def test_a_model_whose_blocks_wait_in_ram_draws_the_same(run, monkeypatch, tmp_path):
    made = generate("--run", run, "--prompt", PROMPT)
    config = json.loads((run / "config.resolved.json").read_text())
    (tmp_path / "moved.json").write_text(json.dumps(config | {"blocks_to_swap": 56, "output_dir": str(tmp_path / "o")}))
    fetched = []
    monkeypatch.setattr(Streamed, "fetch", lambda self, block: fetched.append(block.index) or FETCH(self, block))
    words = ("--lora", run / small.RESULT, "--prompt", PROMPT)
    moved = generate("--config", tmp_path / "moved.json", *words)
    still = generate("--config", run / "config.resolved.json", *words)
    assert fetched and all(map(same, moved, still)) and len(moved) == len(made)


def test_strength_zero_gives_the_base_pictures(run):
    made = generate("--run", run, "--prompt", PROMPT, "--count", 2, "--strength", 0)
    assert len(made) == 4 and all(map(same, made, base(run)))
    assert "adapter" not in opened(made[0])[1]
    assert not any(map(same, made, generate("--run", run, "--prompt", PROMPT, "--count", 2)))


def test_the_base_alone_is_strength_zero(run):
    """From the run's configuration without its weights."""
    config = run / "config.resolved.json"
    made = generate("--config", config, "--prompt", PROMPT, "--count", 2)
    assert len(made) == 4 and all(map(same, made, base(run)))


def test_the_exported_file_draws_the_same_picture(run):
    """Up to the rounding of its folded scale, which an 8-bit pixel may show by one step."""
    made = generate("--config", run / "config.resolved.json", "--lora", run / small.RESULT, "--prompt", PROMPT)
    theirs = opened(validation(run)[4])[0].astype(int)
    assert abs(opened(made[0])[0] - theirs).max() <= 1


def test_a_file_holds_what_made_it(run):
    words = ("--size", "64x64", "--steps", 3, "--seed", 7, "--guidance", 2, "--strength", 0.5)
    (made,) = generate("--run", run, "--prompt", "a dog", *words, "--guidance-real", 1)
    text = opened(made)[1]
    assert len(text.pop("adapter")) == len(text.pop("base")) == 16
    assert text == {
        "prompt": "a dog", "seed": "7", "size": "64x64", "steps": "3", "guidance": "2.0", "guidance_real": "1.0",
        "flavour": "nano", "sampler": "euler", "adapter_strength": "0.5", "step": "4",
    }  # fmt: skip


def test_no_file_is_ever_overwritten(run):
    words = ("--run", run, "--prompt", "a dog", "--size", "64x64", "--out", "pictures")
    assert generate(*words) == [Path("pictures/a-dog_0001.png")]
    Path("pictures/a-dog_0002.png").write_text("mine")
    assert generate(*words) == [Path("pictures/a-dog_0003.png")]
    assert Path("pictures/a-dog_0002.png").read_text() == "mine"
    assert sorted(path.name for path in Path("pictures").iterdir()) == [f"a-dog_000{i}.png" for i in (1, 2, 3)]


def test_the_run_is_only_read(run):
    before = small.tree(run.parent)
    generate("--run", run, "--prompt", "words that no cache holds", "--size", "64x64")
    assert small.tree(run.parent) == before


def test_a_run_whose_pictures_and_caches_are_gone_still_draws(run, tmp_path):
    shutil.copytree(run, tmp_path / "moved")
    config = tmp_path / "moved/config.resolved.json"
    values = json.loads(config.read_text()) | {"data_backend_config": "gone.json", "cache_dir_text": "gone"}
    config.write_text(json.dumps(values))
    made = generate("--run", tmp_path / "moved", "--prompt", PROMPT)
    assert same(made[0], validation(run)[4])


def test_a_damaged_checkpoint_is_passed_over_and_named(run, tmp_path):
    shutil.copytree(run, tmp_path / "damaged")
    newest = small.newest(tmp_path / "damaged")
    shutil.copytree(newest, newest.with_name("checkpoint-5"))
    newest.with_name("checkpoint-5").joinpath("state/adapter.safetensors").write_bytes(b"")
    done = CliRunner().invoke(program, ["generate", "--run", str(tmp_path / "damaged"), "--prompt", PROMPT])
    assert done.exit_code == 0 and "checkpoint-5 is passed over" in done.stderr
    shutil.rmtree(newest)
    error = CliRunner().invoke(program, ["generate", "--run", str(tmp_path / "damaged"), "--prompt", "a"]).exception
    assert isinstance(error, SimpleTunerError) and error.exit_code == 7


def test_pictures_are_listed_as_json_on_request(run):
    words = ["generate", "--run", str(run), "--prompt", "a dog", "--size", "64x64", "--json"]
    (picture,) = json.loads(CliRunner().invoke(program, words).stdout)["pictures"]
    assert picture["file"] == "generated/a-dog_0001.png" and picture["settings"]["seed"] == 11


def test_a_lora_of_another_model_is_told_before_anything_is_loaded(run, tmp_path, monkeypatch):
    from simpletuner.models.flux.family import Flux

    monkeypatch.setattr(Flux, "load_text_encoders", lambda *_: pytest.fail("the text encoders were loaded"))
    words = ["generate", "--example", "nano", "--lora", str(run / small.RESULT), "--prompt", "a dog"]
    error = CliRunner().invoke(program, words).exception
    assert isinstance(error, SimpleTunerError) and error.exit_code == 2
    assert "is not a LoRA for nano: 0 of its 11 layers fit, rank 4" in str(error)


def test_a_picture_that_cannot_be_made_is_an_error(run, monkeypatch):
    from simpletuner.validation.sample import ImageMaker

    def failing(maker, shot):
        raise FloatingPointError("the model gave numbers that are not finite")

    monkeypatch.setattr(ImageMaker, "_latents", failing)
    with pytest.raises(HardwareError, match="2 of 2 pictures could not be made"):
        generate("--run", run, "--prompt", "a dog")


def test_a_whole_model_draws_its_last_validation_image(config, tmp_path):
    words = VALIDATION | {"model_type": "full", "lora_rank": None, "learning_rate": 1e-3, "num_validation_images": 1}
    done = small.train(config("full", **words))
    done.config.write(tmp_path / "full/config.resolved.json")
    made = generate("--run", tmp_path / "full", "--prompt", PROMPT)
    kept = [path for path in validation(tmp_path / "full") if "_validation_" in path.name]
    assert [path.read_bytes() for path in made] == [path.read_bytes() for path in kept]
    for folder in (tmp_path / "full").glob("checkpoint-*"):
        shutil.rmtree(folder)  # the result alone is enough
    assert same(generate("--run", tmp_path / "full", "--prompt", PROMPT)[0], kept[0])
