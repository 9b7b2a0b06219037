"""The last lines of a run name what is there, in words for a shell and for Python; test_nano types and pastes them."""

from __future__ import annotations

import os
import subprocess

import pytest
import small

from simpletuner import assembly
from simpletuner.config import load
from simpletuner.ending import last_lines
from simpletuner.models.flux import usage
from simpletuner.models.flux.weights import Weights
from simpletuner.models.options import Model
from simpletuner.plan.words import shown_path
from simpletuner.process import run as whole_process
from simpletuner.types import Size


@pytest.fixture
def lines(config):
    """lines(**changes): the last lines of a run that is not made, as if it had ended."""

    def make(**changes):
        run = small.prepared(config(**changes))
        run.family = run.load_family()
        return last_lines(run, run.output_dir / run.kind.result)

    return make


def test_what_is_not_there_is_not_named(lines):
    said = lines()
    assert "report" not in said and "before/after" not in said and said.splitlines()[-1].startswith("LoRA  ")
    assert said.splitlines()[-1].endswith(small.RESULT)


def test_a_prompt_with_quotes_can_be_pasted(lines, monkeypatch, tmp_path):
    prompt = """it's "$HOME" `x`! \\ 5"""
    said = lines(validation_disable=False, validation_prompt=prompt)
    line = next(line for line in said.splitlines() if line.startswith("pictures"))
    done = subprocess.run(
        ["bash", "-c", f"simpletuner() {{ printf '%s\\n' \"$@\"; }}; {line[14:]}"], capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["generate", "--run", str(tmp_path / "out"), "--prompt", prompt]
    picture = next(line for line in said.splitlines() if "image = pipeline(" in line).strip()
    pipeline = type("", (), {"__call__": lambda self, text, **_: type("", (), {"images": [text]})})()
    scope = {"pipeline": pipeline}
    exec(picture, scope)
    assert scope["image"] == prompt


def test_real_guidance_and_precision_are_in_the_lines(lines):
    said = lines(validation_guidance_real=4.0, mixed_precision="bf16", optimizer="adamw_bf16")
    assert 'negative_prompt="", true_cfg_scale=4.0' in said
    assert "import torch\n" in said and "dtype=torch.bfloat16)" in said


def test_full_training_opens_its_own_folder(lines, tmp_path):
    said = lines(model_type="full", lora_rank=None, learning_rate=1e-3)
    assert f'FluxPipeline.from_pretrained("{tmp_path / "out/pipeline"}")' in said and "load_lora" not in said
    assert said.splitlines()[-1] == f"{'model':<13} {tmp_path / 'out/pipeline'}"


def test_parts_from_elsewhere_are_opened_from_there(model, tmp_path):
    own = Model(
        model_flavour="nano", pretrained_model_name_or_path="someone/model", revision="v2",
        pretrained_transformer_model_name_or_path=str(model), pretrained_t5_model_name_or_path=str(model),
    )  # fmt: skip
    config, _ = load(None, {"model_flavour": "nano"}, {})
    family = assembly.record(config)
    *imports, transformer, t5, pipeline = usage.opening(Weights(own, family.flavour("nano")), "bfloat16")
    assert imports == [
        "import torch",
        "from diffusers import FluxPipeline, FluxTransformer2DModel",
        "from transformers import T5EncoderModel",
    ]
    where = f'from_pretrained("{model}", subfolder='
    assert transformer == f'transformer = FluxTransformer2DModel.{where}"transformer", dtype=torch.bfloat16)'
    assert t5 == f'text_encoder_2 = T5EncoderModel.{where}"text_encoder_2", dtype=torch.bfloat16)'
    assert pipeline == (
        'pipeline = FluxPipeline.from_pretrained("someone/model", revision="v2", transformer=transformer, '
        "text_encoder_2=text_encoder_2, dtype=torch.bfloat16)"
    )


def test_a_line_for_a_picture_has_the_settings_of_the_validation():
    line = usage.picture("a cat", Size(64, 96), steps=20, guidance=3.5, real=1.0, length=32)
    assert line == (
        'image = pipeline("a cat", height=64, width=96, num_inference_steps=20, guidance_scale=3.5, '
        "max_sequence_length=32).images[0]"
    )


def test_paths_below_the_working_directory_are_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "a/b") == os.path.join("a", "b") and shown_path(tmp_path.parent / "c") == str(
        tmp_path.parent / "c"
    )


def test_a_report_that_cannot_be_written_ends_no_run(config, tmp_path, capfd):
    path = config(max_train_steps=1)
    (tmp_path / "out/report.html").mkdir(parents=True)
    assert whole_process(path) == 0
    warnings = [event["message"] for event in small.events(tmp_path / "out", "warning")]
    assert any(message.startswith("report.html could not be written: ") for message in warnings)
    assert "\nreport " not in capfd.readouterr().err


def test_a_stopped_and_a_failed_run_have_a_report(config, tmp_path, monkeypatch):
    from simpletuner.training.trainer import Trainer

    def failing(trainer, window):
        raise RuntimeError("<b>broken</b>")

    monkeypatch.setattr(Trainer, "_step", failing)
    assert whole_process(config(max_train_steps=1)) == 1
    page = (tmp_path / "out/report.html").read_text()
    assert 'class="state failed"' in page and "&lt;b&gt;broken&lt;/b&gt;" in page
