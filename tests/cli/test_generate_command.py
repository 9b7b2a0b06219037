"""The door of `simpletuner generate`: what it understands, and every mistake in one go, before torch is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from program import alone

from simpletuner.cli import sources
from simpletuner.cli.generate import Given, check
from simpletuner.cli.main import program
from simpletuner.errors import SimpleTunerError
from simpletuner.models.options import Model
from simpletuner.training.options import Speed
from simpletuner.types import Size
from simpletuner.validation.options import Validation

NOTHING = dict.fromkeys(("size", "steps", "guidance", "guidance_real", "negative", "strength", "seed"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working directory, and an environment that names no configuration."""
    return alone(monkeypatch, tmp_path)


def lora(path="my.safetensors", **metadata) -> Path:
    """A LoRA's header with as many zeros behind it as it promises."""
    shapes = {"transformer.proj_out.lora_A.weight": [4, 128], "transformer.proj_out.lora_B.weight": [64, 4]}
    header, end = {"__metadata__": metadata}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    return Path(path)


def order(*prompts, library=None, run=None, file=None, example=None, count="1", words=(), **settings):
    """(what would be made, the notices)."""
    asked = sources.Asked(None, None, example, words)
    given = Given(asked, run, file, prompts, library, NOTHING | settings, count, Path("generated"))
    made, notices = check(given)
    return made, [problem.message for problem in notices]


def wrong(*words) -> str:
    """What the command says is wrong."""
    error = CliRunner().invoke(program, ["generate", *words]).exception
    assert isinstance(error, SimpleTunerError) and error.exit_code == 2, error
    assert all(problem.fix for problem in error.problems if problem.severity == "error")
    return "\n".join(problem.message for problem in error.problems)


def test_every_mistake_is_told_in_one_go():
    Path("taken").write_text("")
    said = wrong(
        "--run", "nowhere", "--lora", "missing.safetensors", "--size", "12y", "--steps", "0", "--count", "many",
        "--strength", "much", "--seed", "-1", "--guidance", "x", "--guidance-real", "0", "--out", "taken",
    ).splitlines()  # fmt: skip
    assert said == [
        '--seed: "-1" is not >= 0', '--steps: "0" is outside [1, 1000]', '--guidance: "x" is not a number',
        '--guidance-real: "0" is not >= 1', '--strength: "much" is not a number', '--size: "12y" is not a size',
        '--count: "many" is not a number', "nothing to make a picture of", "there is no file missing.safetensors",
        "--run: nowhere is no folder of a run: it has no config.resolved.json", "--out: taken is a file",
    ]  # fmt: skip


def test_mistakes_are_told_without_torch():
    code = (
        "import sys\nsys.argv = ['simpletuner', 'generate', '--lora', 'no.safetensors', '--prompt', 'a cat']\n"
        "from simpletuner.cli.main import main\ntry:\n    main()\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2 False\n" and "there is no file no.safetensors" in done.stderr


def test_a_stray_word_and_an_unknown_option_are_refused():
    assert '"cat" is not an option' in wrong("--prompt", "a", "cat")
    done = CliRunner().invoke(program, ["generate", "--promt", "a cat"])
    assert done.exit_code == 2 and "--prompt" in done.output


def test_a_run_brings_its_settings_and_no_other_configuration():
    Path("run").mkdir()
    Path("run/config.resolved.json").write_text("{}")
    assert "no other can be named" in wrong("--run", "run", "--example", "nano", "--prompt", "a")
    assert "has no checkpoint yet" in wrong("--run", "run", "--prompt", "a")


def test_settings_come_from_the_example():
    made, notices = order("a cat", example="nano")
    assert notices == [] and made.lora is None and made.count == 1
    assert made.config[Model].model_flavour == "nano" and made.config[Validation].validation_guidance == 1.0


def test_settings_come_from_a_run_and_not_from_the_environment_of_today(monkeypatch):
    monkeypatch.setenv("SIMPLETUNER_VALIDATION_GUIDANCE", "9")
    Path("run/checkpoint-4").mkdir(parents=True)
    Path("run/config.resolved.json").write_text('{"model_flavour": "nano", "validation_guidance": 2.5}')
    made, _ = order("a cat", run=Path("run"))
    assert made.config[Validation].validation_guidance == 2.5 and made.lora is None


def test_the_file_of_a_run_without_checkpoints_is_taken():
    Path("run").mkdir()
    Path("run/config.resolved.json").write_text('{"model_flavour": "nano"}')
    file = lora("run/pytorch_lora_weights.safetensors")
    made, _ = order("a cat", run=Path("run"))
    assert made.lora.path == file


def test_where_nothing_is_named_the_file_says_what_it_was_trained_on():
    made, notices = order("a cat", file=lora(**{"simpletuner.flavour": "krea"}))
    assert made.config[Model].model_flavour == "krea" and notices == []
    made, notices = order("a cat", file=lora(**{"simpletuner.flavour": "nano"}))
    assert made.config[Speed].mixed_precision == "no" and notices == []  # as the example is set
    made, notices = order("a cat", file=lora())
    assert made.config[Model].model_flavour == "nano" and notices == [
        "no configuration in this folder: the example nano is used"
    ]


def test_the_configuration_that_lies_here_comes_before_what_the_file_says():
    Path("config.json").write_text('{"model_flavour": "dev", "validation_guidance": 4.5}')
    made, _ = order("a cat", file=lora(**{"simpletuner.flavour": "krea"}))
    assert made.config[Model].model_flavour == "dev" and made.config[Validation].validation_guidance == 4.5


def test_single_options_can_be_changed():
    made, _ = order("a cat", example="nano", words=("mixed_precision=bf16",))
    assert made.config[Speed].mixed_precision == "bf16"


def test_the_command_line_wins_over_the_library_and_that_over_the_run():
    Path("library.json").write_text(json.dumps({"chef": {"prompt": "a chef", "steps": 7, "seed": 3}, "dog": "a dog"}))
    made, _ = order("a cat", library=Path("library.json"), example="nano", seed="5", size="96x64", negative="")
    assert [(p.nickname, p.text, p.steps, p.seed) for p in made.prompts] == [
        ("a-cat", "a cat", None, 5), ("chef", "a chef", 7, 5), ("dog", "a dog", None, 5)
    ]  # fmt: skip
    assert all(p.sizes == (Size(64, 96),) and p.negative == "" and p.guidance is None for p in made.prompts)


def test_mistakes_of_a_library_have_their_place():
    Path("library.json").write_text('{"chef": {"prompt": "a chef",\n "step": 7}}')
    error = CliRunner().invoke(program, ["generate", "--prompts", "library.json", "-e", "nano"]).exception
    (problem,) = error.problems
    assert 'unknown key "step"' in problem.message and problem.where.startswith("library.json:2")


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("flat emoji of a fox", "flat-emoji-of-a-fox"),
        ("a शेर / ../x", "a-शेर-x"),
        ("", "picture"),
        ("...", "picture"),
        ("con", "con_"),
        ("猫" * 60, "猫" * 26),
        (
            "so many words that they would make a name that no list shows",
            "so-many-words-that-they-would-make-a-name-that",
        ),
    ],
)
def test_files_are_named_after_the_prompt(prompt, name):
    assert order(prompt, example="nano")[0].prompts[0].nickname == name


def test_what_has_no_effect_is_said():
    _, notices = order("a cat", example="nano", strength="0.5", negative="dark")
    assert notices == [
        "--strength has no effect: there is no LoRA, so this is the base model",
        "--negative has no effect without --guidance-real above 1",
    ]
    assert order("a cat", example="nano", negative="dark", guidance_real="2")[1] == []


def test_a_whole_model_has_no_strength():
    Path("run/checkpoint-4").mkdir(parents=True)
    Path("run/config.resolved.json").write_text('{"model_flavour": "nano", "model_type": "full"}')
    assert "has no strength" in wrong("--run", "run", "--prompt", "a", "--strength", "0.5")
    assert "cannot be put upon" in wrong("--run", "run", "--prompt", "a", "--lora", str(lora()))
    order("a cat", run=Path("run"), strength="1")
