"""The program from outside: what it prints where, and the code it ends with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from program import alone, run, start

from simpletuner import __version__
from simpletuner.cli.main import COMMANDS, program
from simpletuner.cli.surfaces import ROOT
from simpletuner.examples import EXAMPLES

# Ten mistakes, five in each file.
CONFIG = """{
  "--lora_rnak": 4,
  "optimizer": "adam",
  "learning_rate": "fast",
  "max_train_steps": 100,
  "num_train_epochs": 2,
  "train_batch_size": 0,
  "output_dir": "out",
  "data_backend_config": "data.json",
  "validation_prompt": "a cat",
}
"""
DATASETS = """[
  {
    "id": "cats",
    "type": "local",
    "instance_data_dir": "pictures",
    "repeat": 5,
    "crop_style": "middle",
    "resolution": 1024,
    "resolution_type": "area"
  },
  {
    "id": "cats",
    "type": "local",
    "instance_data_dir": "nowhere",
    "caption_strategy": "instanceprompt"
  }
]
"""
MISTAKES = [  # what is said, and where
    ('unknown option "lora_rnak"', "config.json:2:3"),
    ('optimizer: "adam" is not a choice', "config.json:3:3"),
    ('learning_rate: "fast" is not a number', "config.json:4:3"),
    ("max_train_steps and num_train_epochs are both set", "config.json:5:3 and config.json:6:3"),
    ("train_batch_size: 0 is outside [1, 128]", "config.json:7:3"),
    ('unknown key "repeat"', "data.json:6:5"),
    ('crop_style: "middle" is not a choice', "data.json:7:5"),
    ("did you mean pixel_area?", "data.json:8:5"),
    ('id "cats" is given twice', "data.json:12:5"),
    ("needs instance_prompt", "data.json:15:5"),
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    return alone(monkeypatch, tmp_path)


@pytest.fixture
def nano(here):
    """The example as a configuration of one's own."""
    assert run("examples", "copy", "nano", "--dest", "config").returncode == 0
    return here / "config/config.json"


def show(*words):
    return CliRunner().invoke(program, words, catch_exceptions=False).output


# ---- mistakes


@pytest.mark.parametrize("command", ["validate", "train"])
def test_ten_mistakes_in_two_files_are_told_in_one_go_and_nothing_is_started(here, command):
    (here / "pictures").mkdir()
    Path("config.json").write_text(CONFIG)
    Path("data.json").write_text(DATASETS)
    before = sorted(here.rglob("*"))
    done = start(command, COLUMNS="200")
    assert done.returncode == 2 and done.stdout == ""
    lines = done.stderr.splitlines()
    for said, where in MISTAKES:
        (at,) = [i for i, line in enumerate(lines) if said in line]
        shown = lines[at] if where in lines[at] else lines[at + 1]
        assert (
            lines[at].startswith("error[config]: ") and where.split(" and ")[0] in shown and where.split()[-1] in shown
        )
    assert 'did you mean "lora_rank"?' in done.stderr and '"repeats"' in done.stderr
    assert any(line.startswith("warning[config]: trailing comma") and "config.json:10:31" in line for line in lines)
    assert lines[-1].endswith("Nothing was started. (exit 2)") and "Traceback" not in done.stderr
    assert int(lines[-1].split()[0]) == sum(line.startswith("error[") for line in lines) >= len(MISTAKES)
    assert sorted(here.rglob("*")) == before


def test_a_mistake_is_told_before_torch_is_loaded(here):
    Path("config.json").write_text('{"lora_rnak": 4}')
    code = (
        "import sys\nsys.argv = ['simpletuner', 'train']\nfrom simpletuner.cli.main import main\ntry:\n    main()\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2 False\n"


def test_broken_json_shows_the_line_and_a_caret():
    Path("config.json").write_text('{\n  "seed": 1\n  "lora_rank": 4\n}\n')
    done = run("validate")
    assert done.returncode == 2 and "config.json:3:3" in done.stderr
    lines = done.stderr.splitlines()
    at = lines.index('    "lora_rank": 4')
    assert lines[at + 1] == "    ^" and "JSONDecodeError" not in done.stderr


def test_a_missing_folder_of_pictures_is_a_fault_of_the_data(nano):
    datasets = nano.with_name("multidatabackend.json")
    datasets.write_text(datasets.read_text().replace("config/examples/nano/pictures", "nowhere"))
    done = run("validate", f"data_backend_config={datasets}")
    assert done.returncode == 3 and "error[dataset]" in done.stderr and done.stderr.endswith("(exit 3)\n")


def test_the_last_line_counts():
    Path("config.json").write_text('{"seed": 1,}')
    assert "1 warning. Nothing was started. (exit 2)" in run("validate").stderr


@pytest.mark.parametrize("word", ["trian", "vallidate", "nonsense"])
def test_an_unknown_command_names_the_nearest(word):
    done = start(word)
    assert done.returncode == 2 and f'no command "{word}"' in done.stderr
    if word != "nonsense":
        assert "did you mean" in done.stderr


def test_a_word_that_is_no_option():
    done = run("validate", "-e", "nano", "loose")
    assert done.returncode == 2 and '"loose" is not an option' in done.stderr


def test_tracebacks_are_shown_only_on_request():
    assert "Traceback" not in run("train", "--config", "none").stderr
    assert "Traceback" in run("train", "--config", "none", "--debug").stderr
    assert "Traceback" in run("train", "--config", "none", SIMPLETUNER_DEBUG="1").stderr


# ---- finding a configuration


@pytest.mark.parametrize(
    "words", [("--config", "none.json"), ("--env", "none"), ("env=none",), ("seed=1",)], ids=" ".join
)
def test_a_missing_configuration_prints_the_line_that_makes_one(words):
    Path("config").mkdir()
    Path("config/config.json.example").write_text("{}")
    done = run("train", *words)
    assert done.returncode == 2 and "no configuration found" in done.stderr and "tried " in done.stderr
    assert "fix: cp config/config.json.example config/config.json" in done.stderr


def test_an_unknown_example_names_the_known_one():
    for words in (("--example", "nanno"), ("-e", "nanno"), ("example=nanno",)):
        done = run("validate", *words)
        assert done.returncode == 2 and 'did you mean "nano"?' in done.stderr


def test_environments(nano):
    Path("config/portraits").mkdir()
    Path("config/portraits/config.json").write_text(nano.read_text().replace("250,", "9,", 1))
    for words, environ in (
        (("--env", "portraits"), {}),
        (("env=portraits",), {}),
        ((), {"ENV": "portraits"}),
        ((), {"SIMPLETUNER_ENVIRONMENT": "portraits"}),
        ((), {"CONFIG_PATH": "config/portraits"}),
    ):
        done = run("validate", *words, **environ)
        assert done.returncode == 0 and "ok: config/portraits/config.json" in done.stdout


def test_a_shells_own_env_is_passed_over_with_a_notice(nano):
    done = run("validate", ENV="/etc/profile")
    assert done.returncode == 0 and "ok: config/config.json" in done.stdout
    assert "notice: ENV=/etc/profile is a file, not an environment" in done.stderr


def test_another_backend_is_not_replaced_by_the_file_that_is_there(nano):
    done = run("validate", CONFIG_BACKEND="toml")
    assert done.returncode == 2 and "no configuration found" in done.stderr and "config/config.toml" in done.stderr


def test_the_command_line_alone_can_be_enough(nano):
    words = [
        "max_train_steps=5",
        "data_backend_config=config/multidatabackend.json",
        "resolution=64",
        "model_flavour=nano",
    ]
    nano.unlink()
    done = run("validate", *words)
    assert done.returncode == 0 and done.stdout.startswith("ok: command line, 1 image dataset, ")


# ---- validate


def test_validate_says_what_it_checked(nano):
    done = run("validate")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == "ok: config/config.json, 1 image dataset, 8 validation prompts\n"


def test_validate_shows_values_with_their_origins(nano):
    shown = run("validate", "--show", "--seed", "7", SIMPLETUNER_LORA_RANK="3").stdout
    assert "seed = 7   (command line)\n" in shown and "lora_rank = 3   (env SIMPLETUNER_LORA_RANK)\n" in shown
    assert "model_flavour = nano   (config/config.json:2:3)\n" in shown
    assert "validation_guidance = 1   (config/config.json:" in shown and "revision" not in shown
    everything = run("validate", "--show", "all").stdout
    assert "revision = unset   (default)\n" in everything


def test_validate_speaks_json(nano):
    good = json.loads(run("validate", "--json", "--show", "--seed=7").stdout)
    assert good["exit_code"] == 0 and good["problems"] == []
    assert {"key": "seed", "value": 7, "origin": "command line"} in good["options"]
    done = run("validate", "--json", "lora_rank=many")
    bad = json.loads(done.stdout)
    (problem,) = bad["problems"]
    assert done.returncode == bad["exit_code"] == problem["exit_code"] == 2 and done.stderr == ""
    assert problem["where"] == "command line" and problem["keys"] == ["lora_rank"] and problem["fix"]


def test_validate_speaks_json_even_where_there_is_nothing_to_check():
    done = run("validate", "--json", "--config", "none.json")
    record = json.loads(done.stdout)
    assert done.returncode == record["exit_code"] == 2 and "no configuration found" in record["problems"][0]["message"]


@pytest.mark.parametrize(
    "words",
    [("lora_rank=4",), ("--lora_rank", "4"), ("--lora_rank=4",), ("--lora-rank", "4"), ("lora-rank=4",)],
    ids=" ".join,
)
def test_every_spelling_reaches_the_configuration(nano, words):
    options = json.loads(run("validate", "--json", "--show", *words).stdout)["options"]
    assert {"key": "lora_rank", "value": 4, "origin": "command line"} in options


def test_flags(nano):
    words = ("--validation_on_startup", "--no-dataloader_prefetch", "seed=1")
    options = {o["key"]: o["value"] for o in json.loads(run("validate", "--json", "--show", *words).stdout)["options"]}
    assert (options["validation_on_startup"], options["dataloader_prefetch"], options["seed"]) == (True, False, 1)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(nano):
    environ = {
        "SIMPLETUNER_LORA_RANK": "5",
        "SIMPLETUNER_MAX_TRAIN_STEPS": "50",
        "TRAINER_EXTRA_ARGS": "--train_batch_size 2",
    }
    done = run("validate", "--json", "--show", "lora_rank=6", **environ)
    options = {o["key"]: (o["value"], o["origin"]) for o in json.loads(done.stdout)["options"]}
    assert options["lora_rank"] == (6, "command line")
    assert options["max_train_steps"] == (50, "env SIMPLETUNER_MAX_TRAIN_STEPS")
    assert options["train_batch_size"] == (2, "env TRAINER_EXTRA_ARGS")
    assert options["lr_scheduler"][1].startswith("config/config.json:")


# ---- train


def test_the_trainer_gets_what_the_command_line_said_over_the_environment(nano):
    """The trainer is a process of its own; it must not read the environment once more."""
    environ = {"SIMPLETUNER_MAX_TRAIN_STEPS": "50", "SIMPLETUNER_LORA_DROPOUT": "7"}
    words = ("max_train_steps=1", "lora_dropout=0", "output_dir=out", "pretrained_model_name_or_path=nowhere/at-all")
    done = start("train", *words, HF_HUB_OFFLINE="1", **environ)
    assert done.returncode not in (0, 1, 2) and "lora_dropout" not in done.stderr
    resolved = json.loads(Path("out/config.resolved.json").read_text())
    assert resolved["max_train_steps"] == 1 and resolved["_origins"]["max_train_steps"] == "command line"


def test_an_output_folder_that_cannot_be_written_is_told_at_once(nano):
    Path("file").write_text("")
    done = start("train", "output_dir=file/out")
    assert done.returncode == 7 and "error[disk]" in done.stderr and "Traceback" not in done.stderr


# ---- the other commands


def test_help_lists_every_command_and_the_way_to_more():
    text = show("--help")
    assert text == show() == show("-h")
    assert all(f"  {name} " in text and line in text for name, (_, line) in COMMANDS.items())
    assert text.rstrip().endswith("simpletuner help lora_rank explains any option")
    assert [text.index(title) for title in ("Start:", "Check:", "Use:")] == sorted(
        text.index(t) for t in ("Start:", "Check:", "Use:")
    )


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "help"])
def test_every_command_has_a_help_of_its_own(name):
    assert show(name, "--help").startswith("Usage: ")
    assert show("help", name).startswith("Usage: ")


def test_train_help_shows_basic_options_and_all_of_them_on_request():
    short, whole = run("train", "--help").stdout, run("train", "--help-all").stdout
    assert "--learning_rate" in short and "--vae_dtype" not in short and "--vae_dtype" in whole
    for words in (("model_flavour=fluxbooru",), ("--model_flavour", "fluxbooru")):
        assert "[default: 28]" in run("train", *words, "--help").stdout


@pytest.mark.parametrize("name", ["lora_rank", "--lora-rank", "validation_steps"])
def test_help_explains_an_option_under_any_of_its_names(name):
    text = show("help", name)
    assert "default: " in text and ("lora_rank" in text or "validation_step_interval" in text)


def test_help_explains_what_is_not_there():
    assert "Not yet available." in show("help", "use_ema")
    assert "is not offered: " in show("help", "controlnet")
    done = run("help", "lora_rnak")
    assert done.returncode == 2 and 'did you mean "lora_rank"?' in done.stderr


def test_version():
    assert show("version") == show("--version") == __version__ + "\n"
    record = json.loads(show("version", "--json"))
    assert record["simpletuner"] == __version__ and record["python"].startswith("3.")
    assert record["packages"]["torch"] and "pillow" in record["packages"]


def test_examples_are_listed_and_copied_but_never_over_something(nano):
    assert all(name in show("examples", "list") for name in EXAMPLES)
    assert sorted(p.name for p in nano.parent.iterdir()) == [
        "config.json",
        "multidatabackend.json",
        "user_prompt_library.json",
    ]
    nano.write_text("mine")
    done = run("examples", "copy", "nano", "--dest", "config")
    assert done.returncode == 2 and "exist already" in done.stderr and nano.read_text() == "mine"
    assert "next: simpletuner train --config config/nano" in show("examples", "copy", "nano")
    assert run("validate", "--env", "nano").returncode == 0


def test_a_reader_that_has_gone_is_no_error():
    command = f"{sys.executable} -m simpletuner.cli.main train --help-all | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


def test_the_console_script_is_the_same_program():
    assert 'simpletuner = "simpletuner.cli.main:main"' in (ROOT / "pyproject.toml").read_text()
