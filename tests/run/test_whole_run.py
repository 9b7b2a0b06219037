"""A whole run, from a folder of pictures to a file that loads elsewhere."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import small
import torch
from safetensors.torch import load_file

import simpletuner
from simpletuner.adapters.lora import Lora
from simpletuner.events import read_lines
from simpletuner.types import Batch

NANO = Path(simpletuner.__file__).parent / "nano"
VALIDATION = small.SAMPLES | {"validation_step_interval": 5}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model, pictures):
    """A finished run with everything on, and what the pictures' folder was like before."""
    home, before = tmp_path_factory.mktemp("finished"), small.tree(pictures)
    config = small.configure(home, model, pictures, **VALIDATION, lora_alpha=2.0, gradient_accumulation_steps=2)
    run = small.train(config)
    return run, home / "out", before


def test_a_run_leaves_caches_checkpoints_images_metrics_events_and_the_file(finished):
    run, output, _ = finished
    assert sorted(p.name for p in output.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-4", "checkpoint-8"]
    cache = output.parent / "cache"
    assert len(list((cache / "vae").rglob("*.safetensors"))) == len(small.SIZES)
    assert len(list((cache / "text").rglob("*.safetensors"))) == len(small.SIZES) + 3  # the second, "" and the prompt
    images = {path.name for path in (output / "validation_images").iterdir()}
    assert {f"step_{step}_validation_0_64x64.png" for step in (5, 10)} <= images
    assert list(output.glob("benchmarks/**/*.png")) and list((output / "sheets").iterdir())
    assert [record["step"] for record in read_lines(output / "metrics.jsonl")] == list(range(1, 11))
    assert [e["step"] for e in read_lines(output / "events.jsonl") if e["type"] == "step.done"] == list(range(1, 11))
    assert [e["seq"] for e in read_lines(output / "events.jsonl")] == list(range(1, run.events.seq + 1))
    assert (output / small.RESULT).read_bytes() == (output / "checkpoint-10" / small.RESULT).read_bytes()


def test_the_pictures_are_untouched(finished, pictures):
    _, _, before = finished
    assert small.tree(pictures) == before


def test_read_only_pictures_train(config, tmp_path):
    pictures = small.paint(tmp_path / "pictures")
    for path in (*pictures.iterdir(), pictures):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = small.tree(pictures)
    small.train(config(pictures=pictures, max_train_steps=1))
    assert small.tree(pictures) == before


@pytest.mark.parametrize("alpha", [None, 2.0, 16.0])
def test_the_file_in_a_fresh_pipeline_predicts_what_the_trained_adapter_does(config, model, alpha):
    from diffusers import FluxPipeline

    run = small.prepared(config(lora_alpha=alpha, max_train_steps=4))
    result = run.train()
    pipeline = FluxPipeline.from_pretrained(model)
    inputs = example(pipeline.transformer)
    before = forward(pipeline.transformer, inputs)
    pipeline.load_lora_weights(result.parent, weight_name=result.name)
    loaded = forward(pipeline.transformer, inputs)
    ours = small.prepared(config(lora_alpha=alpha, max_train_steps=4))
    ours.family = ours.load_family()
    denoiser = ours.family.load_denoiser(torch.device("cpu"))
    adapter = ours.attach_adapter(denoiser)
    adapter.load_state(load_file(result.parent / "checkpoint-4/state/adapter.safetensors"))
    assert (loaded - forward(denoiser, inputs)).abs().max() < 1e-5
    assert (loaded - before).abs().max() > 1e-3  # and it does something


def example(transformer):
    """Inputs of a transformer, drawn."""
    generator = torch.Generator().manual_seed(0)
    own = transformer.config
    return {
        "hidden_states": torch.randn(1, 16, own.in_channels, generator=generator),
        "encoder_hidden_states": torch.randn(1, 8, own.joint_attention_dim, generator=generator),
        "pooled_projections": torch.randn(1, own.pooled_projection_dim, generator=generator),
        "timestep": torch.tensor([0.6]),
        "guidance": torch.tensor([1.0]),
        "img_ids": torch.tensor([[0.0, row, column] for row in range(4) for column in range(4)]),
        "txt_ids": torch.zeros(8, 3),
    }


def forward(transformer, inputs):
    with torch.no_grad():
        return transformer(**inputs, return_dict=False)[0]


def test_an_adapter_that_has_learned_nothing_changes_nothing(config):
    run = small.prepared(config())
    run.family = run.load_family()
    denoiser = run.family.load_denoiser(torch.device("cpu"))
    inputs = example(denoiser)
    before = forward(denoiser, inputs)
    assert isinstance(run.attach_adapter(denoiser), Lora)
    assert torch.equal(forward(denoiser, inputs), before)


def test_one_batch_of_four_equals_four_batches_of_one(config, squares, monkeypatch):
    """The plan orders whole batches, so batch 4 and batch 1 meet the pictures in another order. Here both meet the
    pictures of the plan for batch 4, in its order; the draws follow the samples' numbers of themselves."""
    from simpletuner.data.loader import Loader

    wide = small.prepared(config("wide", squares, train_batch_size=4, max_train_steps=3, learning_rate=1e-3))
    seen: list[Batch] = []
    original = Loader.next

    def noted(loader):
        seen.append(original(loader))
        return seen[-1]

    monkeypatch.setattr(Loader, "next", noted)
    wide.train()
    assert [len(batch.ids) for batch in seen] == [4, 4, 4]
    singles = [batch for batch in seen for batch in rows(batch)]
    assert [batch.numbers[0] for batch in singles] == list(range(12))
    narrow = small.prepared(
        config("narrow", squares, gradient_accumulation_steps=4, max_train_steps=3, learning_rate=1e-3)
    )

    def replayed(loader):
        original(loader)  # progress counts on
        return singles.pop(0)

    monkeypatch.setattr(Loader, "next", replayed)
    narrow.train()
    for step, values in small.metrics(wide.output_dir).items():
        other = small.metrics(narrow.output_dir)[step]
        assert values["train_loss"] == pytest.approx(other["train_loss"], rel=1e-6)
        assert values["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
        assert values["samples_seen"] == other["samples_seen"]
    one = load_file(wide.output_dir / "checkpoint-3/state/adapter.safetensors")
    other = load_file(narrow.output_dir / "checkpoint-3/state/adapter.safetensors")
    assert all(torch.allclose(one[key], other[key], rtol=0, atol=1e-6) for key in one)


def rows(batch):
    """A batch as batches of one sample."""
    for i in range(len(batch.ids)):
        part = slice(i, i + 1)
        yield replace(
            batch, ids=batch.ids[part], latents=batch.latents[part], text={k: v[part] for k, v in batch.text.items()},
            weight=batch.weight[part], numbers=batch.numbers[part], captions=batch.captions[part],
        )  # fmt: skip


@pytest.mark.slow
def test_the_loss_on_the_pictures_falls(tmp_path):
    """The bundled example with the settings it is shipped with, in fewer steps and without validation."""
    example = json.loads((NANO / "config.json").read_text())
    datasets = json.loads((NANO / "multidatabackend.json").read_text())
    datasets[0]["instance_data_dir"] = str(NANO / "pictures")
    (tmp_path / "datasets.json").write_text(json.dumps(datasets))
    changes = {
        "output_dir": str(tmp_path / "out"), "data_backend_config": str(tmp_path / "datasets.json"),
        "user_prompt_library": None, "validation_prompt": None, "validation_disable": True,
        "max_train_steps": 100, "torch_num_threads": 1,
    }  # fmt: skip
    config = tmp_path / "config.json"
    config.write_text(json.dumps({k: v for k, v in (example | changes).items() if v is not None}))
    small.train(config)
    losses = [values["train_loss"] for _, values in sorted(small.metrics(tmp_path / "out").items())]
    assert len(losses) == 100
    assert statistics.mean(losses[-20:]) < 0.8 * statistics.mean(losses[:20])


@pytest.mark.parametrize(
    ("precision", "optimizer"), [("bf16", "adamw_bf16"), ("bf16", "torch-adamw"), ("fp16", "torch-adamw")]
)
def test_half_precision_trains_on_the_cpu(config, precision, optimizer):
    run = small.train(config(mixed_precision=precision, optimizer=optimizer, max_train_steps=3))
    found = small.metrics(run.output_dir)
    assert list(found) == [1, 2, 3] and all(0 < values["train_loss"] < 10 for values in found.values())
    trained = load_file(run.output_dir / small.RESULT)
    assert any(value.abs().max() > 0 for key, value in trained.items() if "lora_B" in key)


@pytest.mark.parametrize(("accumulation", "steps"), [(1, 14), (4, 4)])
def test_two_epochs_end_after_two_passes(config, accumulation, steps):
    """Seven pictures twice are fourteen micro-batches; the last window of four may hold two."""
    run = small.train(
        config(max_train_steps=0, num_train_epochs=2, gradient_accumulation_steps=accumulation, max_workers=1)
    )
    assert run.progress.step == steps and run.progress.samples == 14 and run.progress.epoch == 2
    assert (run.output_dir / f"checkpoint-{steps}").is_dir()
