"""A whole run of full training, from a folder of pictures to a model that opens in diffusers."""

import json
import os
import shutil
import signal
import subprocess

import pytest
import small
import torch
from test_whole_run import VALIDATION, example, forward

from simpletuner import keeping
from simpletuner.adapters.weights import Tensors
from simpletuner.errors import DiskError
from simpletuner.process import run as whole_process

FULL = {"model_type": "full", "lora_rank": None, "learning_rate": 1e-3}
BF16 = {"mixed_precision": "bf16", "optimizer": "adamw_bf16"}
REGULARISATION = {"id": "own looks", "is_regularisation_data": True}
PARTS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model, pictures):
    """A finished run with images, and what the base model's folder was like before."""
    home, before = tmp_path_factory.mktemp("finished"), small.tree(model)
    return small.train(small.configure(home, model, pictures, **FULL, **VALIDATION)), home / "out", before


def opened(folder):
    from diffusers import FluxPipeline

    return FluxPipeline.from_pretrained(folder)


def live(config, checkpoint):
    """The denoiser of a fresh run with the weights of the checkpoint, through the program's own reader."""
    run = small.prepared(config)
    run.family = run.load_family()
    denoiser = run.family.load_denoiser(torch.device("cpu"))
    run.attach_adapter(denoiser).load_state(Tensors(checkpoint / "transformer"))
    return denoiser


def test_the_result_is_a_whole_model_with_the_trained_transformer_and_copies_of_the_base(finished, model):
    run, output, before = finished
    pipeline = output / "pipeline"
    assert run.train() == pipeline, "a finished run ends at once with its result"
    assert {path.name for path in pipeline.iterdir()} == {*PARTS, "transformer", "model_index.json"}
    for path in (path for part in PARTS for path in (model / part).iterdir()):
        copied = pipeline / path.relative_to(model)
        assert copied.read_bytes() == path.read_bytes() and not os.path.samefile(copied, path)
    for path in (output / "checkpoint-10/transformer").iterdir():
        assert (pipeline / "transformer" / path.name).read_bytes() == path.read_bytes()
    assert small.tree(model) == before, "the base is untouched"
    assert not list(output.glob("*.safetensors")) and not list(output.glob(".pipeline*"))


def test_diffusers_predicts_with_it_what_was_trained(finished, model):
    _, output, _ = finished
    trained = opened(output / "pipeline").transformer
    inputs = example(trained)
    ours = live(output.parent / "out.json", output / "checkpoint-10")
    assert torch.equal(forward(trained, inputs), forward(ours, inputs))
    assert (forward(trained, inputs) - forward(opened(model).transformer, inputs)).abs().max() > 1e-3


def test_the_pipeline_makes_a_picture(finished):
    pipeline = opened(finished[1] / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red cat", height=64, width=64, num_inference_steps=1, output_type="pil").images[0]
    assert image.size == (64, 64)


def test_a_checkpoint_holds_the_weights_once_and_says_what_it_is(finished):
    _, output, _ = finished
    manifest = json.loads((output / "checkpoint-10/MANIFEST.json").read_text())
    assert manifest["model_type"] == "full" and manifest["adapter"] == {"kind": "full"}
    listed = {entry["name"]: entry["bytes"] for entry in manifest["files"]}
    assert not any("adapter" in name or "lora" in name for name in listed)
    weights = listed["transformer/diffusion_pytorch_model.safetensors"]
    assert 2.9 * weights < sum(listed.values()) < 3.6 * weights, "the weights, and two moments of each"
    (exported,) = small.events(output, "export.done")
    assert exported == {"path": "pipeline", "format": "diffusers", "checks": ["keys", "values"]}


@pytest.mark.parametrize("changes", [{}, BF16, BF16 | {"optimizer_config": "rounding=kahan"}], ids=str)
@pytest.mark.parametrize("kind", [{"lora_rank": 128}, FULL], ids=["lora", "full"])
def test_the_space_that_a_first_save_wants_is_near_what_it_takes(config, monkeypatch, changes, kind):
    estimates, contents = [], keeping.contents

    def noted(*arguments):
        found = contents(*arguments)
        estimates.append(found.estimated_bytes)
        return found

    monkeypatch.setattr(keeping, "contents", noted)
    run = small.train(config(**changes, **kind, max_train_steps=1))
    (saved,) = small.events(run.output_dir, "checkpoint.saved")
    assert 0.65 < estimates[0] / saved["bytes"] < 1.05


def test_images_of_the_base_are_made_before_the_first_step_and_are_the_bases(finished, config):
    _, output, _ = finished
    lora = small.train(config(**VALIDATION, max_train_steps=1)).output_dir
    names = sorted(path.name for path in (output / "benchmarks/base_model").glob("*.png"))
    assert names
    for name in names:
        ours, theirs = (folder / "benchmarks/base_model" / name for folder in (output, lora))
        assert ours.read_bytes() == theirs.read_bytes()
    last = {path.name for path in (output / "validation_images").iterdir() if path.name.startswith("step_10_")}
    assert last and {path.name for path in (output / "compared").iterdir()} >= last


def test_missing_base_images_are_told_after_a_resume_and_not_made_from_trained_weights(config):
    changes = FULL | VALIDATION
    small.stop_after(small.prepared(config(**changes)), 4)
    folder = config(**changes).parent / "out/benchmarks/base_model"
    shutil.rmtree(folder)
    output = small.train(config(**changes)).output_dir
    assert not folder.exists()
    said = [event["message"] for event in small.events(output, "log")]
    assert sum("of the base model cannot be made" in message for message in said) == 1


def test_bf16_weights_train_and_open(config):
    run = small.train(config(**FULL, **BF16, max_train_steps=4))
    trained = torch.nn.Module.to(opened(run.output_dir / "pipeline").transformer, dtype=torch.bfloat16)
    ours = live(config(**FULL, **BF16, max_train_steps=4), run.output_dir / "checkpoint-4")
    inputs = {name: value.bfloat16() if value.is_floating_point() else value for name, value in example(ours).items()}
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert torch.equal(forward(trained, inputs), forward(ours, inputs))


def test_a_longer_run_puts_its_result_in_place_and_keeps_the_one_before(config):
    output = small.train(config(**FULL, max_train_steps=2)).output_dir
    before = (output / "pipeline/transformer/diffusion_pytorch_model.safetensors").read_bytes()
    small.train(config(**FULL, max_train_steps=4))
    assert (output / "earlier-1/pipeline/transformer/diffusion_pytorch_model.safetensors").read_bytes() == before
    assert (output / "pipeline/transformer/diffusion_pytorch_model.safetensors").read_bytes() != before
    assert "earlier_result" in [event["code"] for event in small.events(output, "warning")]
    opened(output / "earlier-1/pipeline")


def test_a_disk_that_is_full_at_the_end_costs_nothing(config, monkeypatch):
    def broken(*_):
        raise OSError(28, "No space left on device")

    path = config(**FULL, max_train_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr("simpletuner.publishing.shutil.copyfile", broken)
        with pytest.raises(DiskError, match="pipeline: No space left") as caught:
            small.train(path)
    output = path.parent / "out"
    assert caught.value.exit_code == 7 and "checkpoint-2 is whole" in caught.value.problems[0].fix
    assert not (output / "pipeline").exists()
    assert small.train(path).output_dir == output and not list(output.glob(".pipeline*"))
    opened(output / "pipeline")


def test_a_kill_near_the_end_leaves_no_result_or_a_whole_one_and_the_next_start_makes_it(config, forks, tmp_path):
    def job(name):
        return config(name, **FULL, max_train_steps=1)

    assert forks.run(job("first")) == 0  # fills the caches, so that the others make the same calls
    whole = job("whole")
    assert forks.run(whole) == 0
    calls = int(whole.with_name("whole.json.calls").read_text())
    names = set(small.tree(tmp_path / "whole/pipeline"))
    for before_the_end in (6, 16, 26, 40):
        output = tmp_path / f"struck-{before_the_end}"
        assert forks.run(job(output.name), at_call=calls - before_the_end) == -signal.SIGKILL
        assert not (output / "pipeline").exists() or set(small.tree(output / "pipeline")) == names
        assert forks.run(job(output.name)) == 0
        assert set(small.tree(output / "pipeline")) == names and not list(output.glob(".pipeline*"))


def test_lora_settings_may_change_on_a_resume_since_they_have_no_effect(config):
    small.train(config(**FULL, max_train_steps=2))
    run = small.train(config(**(FULL | {"lora_rank": 8, "lora_alpha": 2.0}), max_train_steps=3))
    assert run.progress.step == 3


def test_a_lora_run_does_not_go_on_as_full_training(config, capfd):
    small.train(config(max_train_steps=2))
    assert whole_process(config(**FULL, max_train_steps=4)) == 2
    assert 'model_type: "lora" -> "full"' in capfd.readouterr().err


# ---- through the commands


def simpletuner(*words, cwd):
    done = subprocess.run(
        [small.sys.executable, "-m", "simpletuner.cli.main", *map(str, words)],
        cwd=cwd, env=small.environment(), capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_command_trains_and_its_last_lines_open_the_model(config, tmp_path):
    path = config(**FULL, max_train_steps=2, lora_alpha=3.0)
    code, said = simpletuner("train", "--config", path, cwd=tmp_path)
    assert code == 0, said
    assert small.events(tmp_path / "out", "run.started")[0]["model_type"] == "full"
    assert "flux nano, all weights (0." in said and "lora_alpha has no effect unless model_type=lora" in said
    lines = said.splitlines()
    begun = next(number for number, line in enumerate(lines) if line.startswith("in diffusers"))
    pasted = [line.removeprefix("in diffusers").strip() for line in lines[begun:-1]]
    scope = {}
    exec("\n".join(pasted[:-1]), scope)  # the last line makes a picture of full size
    assert scope["pipeline"].transformer.config.num_layers == 1
    assert said.strip().endswith(str(tmp_path / "out/pipeline"))


def test_validate_names_every_mistake_at_once(config, tmp_path):
    path = config(**(FULL | {"mixed_precision": "bf16", "lora_rank": 4}))
    datasets = json.loads((tmp_path / "datasets.json").read_text())
    (tmp_path / "datasets.json").write_text(json.dumps([*datasets, datasets[0] | REGULARISATION]))
    code, said = simpletuner("validate", "--config", path, cwd=tmp_path)
    assert code == 2 and "2 errors" in said, said
    assert "torch-adamw rounds small updates away" in said and "base_model_precision=fp32" in said
    assert "dataset own looks is for regularisation" in said and "datasets.json" in said
    assert "lora_rank has no effect unless model_type=lora" in said
