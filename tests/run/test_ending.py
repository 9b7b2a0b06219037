"""The last lines of a run hold: what they name is there, and what they say to type and to paste works."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import small
from PIL import Image

from simpletuner import assembly
from simpletuner.config import load
from simpletuner.ending import last_lines
from simpletuner.models.flux import usage
from simpletuner.models.flux.weights import Weights
from simpletuner.models.options import Model
from simpletuner.plan.words import shown_path
from simpletuner.process import run as whole_process
from simpletuner.types import Size

SHORT = ("max_train_steps=2", "validation_num_inference_steps=2", "torch_num_threads=1", "learning_rate=0.1")
SAVE = "\nimage.save('pasted.png')\n"


def simpletuner(*words, cwd):
    command = [sys.executable, "-m", "simpletuner.cli.main", *words]
    done = subprocess.run(command, cwd=cwd, env=small.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """(the folder in which it ran, the last lines by name) of the example in two steps, from the shell."""
    home = tmp_path_factory.mktemp("nano")
    said = simpletuner("train", "--example", "nano", *SHORT, cwd=home).stderr.splitlines()
    last = said[said.index(next(line for line in said if line.startswith("report "))) :]
    rows: dict[str, list[str]] = {}
    for line in last:
        name = line[:13].strip()
        rows.setdefault(name or list(rows)[-1], []).append(line[14:])
    return home, rows


def same(one, other, most=0) -> bool:
    with Image.open(one) as a, Image.open(other) as b:
        return abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= most


def test_the_last_lines_name_report_sheet_and_file(nano):
    home, rows = nano
    assert list(rows) == ["report", "before/after", "pictures", "in diffusers", "LoRA"]
    assert rows["report"] == ["simpletuner-results/nano/report.html"] and (home / rows["report"][0]).is_file()
    assert rows["before/after"] == ["simpletuner-results/nano/sheets/step_2.jpg"]
    assert (home / rows["before/after"][0]).is_file()
    assert rows["LoRA"] == [str(home / "simpletuner-results/nano" / small.RESULT)]


def test_the_line_for_pictures_gives_the_validation_image(nano):
    home, rows = nano
    program, *words = shlex.split(rows["pictures"][0])
    assert program == "simpletuner"
    made = simpletuner(*words, cwd=home).stdout.splitlines()
    (kept,) = (home / "simpletuner-results/nano/validation_images").glob("step_2_validation_0_*.png")
    assert len(made) == 1 and (home / made[0]).read_bytes() == kept.read_bytes()


def test_the_lines_for_diffusers_give_the_validation_image(nano):
    """With the seed that a reader would add; diffusers' own arithmetic may round a pixel the other way."""
    home, rows = nano
    pasted = "\n".join(rows["in diffusers"])
    assert "/nano/model" in pasted and "load_lora_weights" in pasted
    exact = pasted.replace(").images[0]", ", generator=__import__('torch').Generator().manual_seed(42)).images[0]")
    environment = small.environment(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    done = subprocess.run(
        [sys.executable, "-c", exact + SAVE], cwd=home, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (kept,) = (home / "simpletuner-results/nano/validation_images").glob("step_2_validation_0_*.png")
    (base,) = (home / "simpletuner-results/nano/benchmarks/base_model").glob("validation_*.png")
    assert same(home / "pasted.png", kept, most=2) and not same(home / "pasted.png", base, most=2)


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
