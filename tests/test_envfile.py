"""config.env is read as a shell would, without a shell; what its names mean; what is handed on to the trainer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner import envfile, naming
from simpletuner.config import Files, load
from simpletuner.envfile import parse_text
from simpletuner.groups import OPTIONS


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values(text, environ=None):
    file = parse_text(text, "config.env", environ or {})
    assert [p for p in file.problems if p.severity == "error"] == []
    return {a.name: a.value for a in file.assignments}


def loaded(text, environ=None, overrides=None, **more):
    """(config, problems) of a config.env with that text."""
    Path("config.env").write_text(text)
    return load(Files(Path("config.env"), **more), overrides or {}, environ or {})


def said(problems, severity="error"):
    return [(p.message, p.where) for p in problems if p.severity == severity]


# ---- the syntax

SHELL = r"""
#!/bin/bash
  # a comment
PLAIN=1e-4
export EXPORTED=yes   # and a comment
export A=1 B=2; C=3
SINGLE='a $PLAIN "b" \n'
DOUBLE="a $PLAIN ${EXPORTED}s \"q\" \\ \$x \n 'y'"
JOINED=a"b c"'d'\ e
EMPTY=
BLANK=""
HASH=a#b
URL=https://huggingface.co/x?y=1
LINES="one
two"
MADE="${NOT_THERE:-made} ${A:-no} ${NOT_THERE-}"
LONG=a\
b
WIDE="c \
d"
A+=4
SELF=x
SELF="$SELF y"
OLD="$HOME_OF_TEST/x"
DOLLAR="5$ $5"
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash to compare with")
def test_it_reads_what_a_shell_reads():
    environ = {"HOME_OF_TEST": "/home"}
    ours = values(SHELL.replace("$5", ""), environ)
    shell = 'source ./f; for n in "$@"; do printf "%s=%s\\0" "$n" "${!n}"; done'
    Path("f").write_text(SHELL.replace("$5", ""))
    done = subprocess.run(["bash", "-c", shell, "-", *ours], env=environ, capture_output=True, text=True, check=True)
    theirs = dict(line.split("=", 1) for line in done.stdout.split("\0")[:-1])
    assert ours == theirs and len(ours) == 19


def test_a_dollar_that_names_nothing_stays():
    assert values('A="5$ $5"') == {"A": "5$ $5"}


def test_places_are_those_of_the_names():
    file = parse_text("\n  export A=1\nB=2 C=3\n", "f", {})
    assert [(a.name, a.where) for a in file.assignments] == [("A", "f:2:10"), ("B", "f:3:1"), ("C", "f:3:5")]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_of_both_kinds(end):
    assert values(f"A=1{end}export B='x'{end}{end}# c{end}C=\"p{end}q\"{end}") == {"A": "1", "B": "x", "C": "p\nq"}


@pytest.mark.parametrize(
    ("text", "value", "warned"),
    [
        ("A = 1", "1", "blanks around"),
        ("A= 1", "1", "blanks around"),
        ("A =1", "1", "blanks around"),
        ("A=a photo of x # c", "a photo of x", "holds blanks"),
        ("A=a  b\tc  ", "a  b\tc", "holds blanks"),
    ],
)
def test_what_a_shell_would_refuse_but_people_write_is_read_with_a_warning(text, value, warned):
    file = parse_text(text, "f", {})
    (problem,) = file.problems
    assert file.assignments[0].value == value
    assert problem.severity == "warning" and warned in problem.message and problem.where.startswith("f:1:")


@pytest.mark.parametrize("text", ["A=", "A= ", "A=   # c", "A=;", "export A=", "A=''", "A=\n"])
def test_a_value_may_be_empty(text):
    file = parse_text(text, "f", {})
    assert [a.value for a in file.assignments] == [""] and file.problems == []


@pytest.mark.parametrize(
    ("text", "message", "where"),
    [
        ("A='x\nB=1", "a quote is not closed", "f:1:3"),
        ('\nA="x', "a quote is not closed", "f:2:3"),
        ("A=$(date +%s)", "commands are not run", "f:1:3"),
        ('A="`date`"', "commands are not run", "f:1:4"),
        ('A="$((2 ** 9))"', "this kind of $((...)) is not read", "f:1:4"),
        ("A=${B%x}", "this kind of ${...} is not read", "f:1:3"),
        ("A=$B", "B is not set", "f:1:3"),
        ("A=(1 2)", "lists of a shell are not read", "f:1:3"),
        ('A="x" y', "text after the closing quote", "f:1:7"),
        ("A=x && ls", "expected NAME=value only", "f:1:5"),
        ("if true; then", 'expected "=" after if', "f:1:4"),
        ("source x", 'expected "=" after source', "f:1:8"),
        ("[x]", "expected NAME=value", "f:1:1"),
        ("export -p", "expected NAME=value", "f:1:8"),
        ("A=1\0", "a zero byte", "f:1:4"),
        ("A=1\nB=1\nA=2", "A is given twice with different values", "f:1:1 and f:3:1"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_its_place(text, message, where):
    file = parse_text(text, "f", {})
    assert said(file.problems)[0] == (message, where) and file.problems[0].fix


def test_all_bad_lines_are_told_and_the_good_ones_are_read():
    file = parse_text("A=$(x)\nB=1\nfi\nC=2\nD='", "f", {})
    assert [p.where for p in file.problems] == ["f:1:3", "f:3:3", "f:5:3"]
    assert [a.name for a in file.assignments] == ["B", "C"]
    assert file.problems[0].details == ("A=$(x)", "  ^")


SUMS = """M / 10|$M/10|${M} * 2 + 1|(M+5)%N|((M)-(N))|-M/7|0-M%7|M / N / 2|E + 1|U + 4|M - -3|-7/2|7%-3|-7%3|$L+1
2*$T|MINUS*2|2+3*4|(2+3)*4|0"""


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash to compare with")
def test_sums_are_those_of_a_shell():
    environ = {"M": "3000", "N": "7", "E": "", "L": "12", "T": "1 + 2", "MINUS": "-4"}
    sums = SUMS.replace("\n", "|").split("|")
    lines = "\n".join(f"S{i}=$(({text}))" for i, text in enumerate(sums))
    shell = lines + "\n" + "\n".join(f"echo $S{i}" for i in range(len(sums)))
    done = subprocess.run(["bash", "-c", shell], env=environ, capture_output=True, text=True, check=True)
    assert list(values(lines, environ).values()) == done.stdout.split() and len(sums) == 20


@pytest.mark.parametrize(
    "text",
    ["M ** 9", "M << 2", "f(1)", "1.5*2", "1 / 0", "1 % 0", "M > 2 ? 1 : 0", "a.b", "010", "Z + 1", "M++", "--M", "1_0",
     "", "$U / 2", "W * 2", "M = 1", "M if M else 1", "M\n+ 1", "9223372036854775807 + 1", "1)+(2"],
)  # fmt: skip
def test_other_sums_are_errors_and_not_guessed(text):
    file = parse_text(f"A=$(({text}))", "f", {"M": "3", "Z": "010", "W": "word"})
    assert said(file.problems)[0] == ("this kind of $((...)) is not read", "f:1:3") and not file.assignments


def test_a_sum_may_stand_in_a_value_and_go_on_from_its_own_name():
    assert values('A=1\nA=$((A + 1))\nB="x$((A * 2))y$((3))" # c\nC=$((1)) D=2') == {
        "A": "2", "B": "x4y3", "C": "1", "D": "2",
    }  # fmt: skip
    config, problems = loaded("MAX_NUM_STEPS=3000\nLR_WARMUP_STEPS=$((MAX_NUM_STEPS / 10))\nLR_SCHEDULE=sine")
    assert said(problems) == [] and config.values()["lr_warmup_steps"] == 300


def test_a_name_that_goes_on_from_its_earlier_value_is_not_given_twice():
    assert values('A=1\nA+=2\nA="$A 3"\nexport A') == {"A": "12 3"}
    assert said(parse_text("A=1\nA=1", "f", {}).problems, "notice") == [
        ("A is given twice with equal values", "f:1:1 and f:2:1")
    ]


@settings(deadline=None)
@given(st.text(alphabet="AB=+'\"\\$(){} \n#;`-:x1é\t\r", max_size=40))
def test_any_text_gives_assignments_or_problems(text):
    file = parse_text(text, "f", {"B": "b"})
    assert all(p.where.startswith("f:") for p in file.problems)
    assert all(envfile.NAME.fullmatch(a.name) for a in file.assignments)


# ---- the names


def test_every_name_of_the_table_is_known():
    assert [name for name, key in envfile.NAMES.items() if not naming.known(key)] == []
    assert [name for name in envfile.SAME.split() if not naming.known(name.lower())] == []


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("RESUME_CHECKPOINT=none", "resume_from_checkpoint", "none"),
        ("TRAINING_SEED=7", "seed", 7),
        ("MAX_NUM_STEPS=30", "max_train_steps", 30),
        ("NUM_EPOCHS=3", "num_train_epochs", 3),
        ("LR_SCHEDULE=sine", "lr_scheduler", "sine"),
        ("USE_GRADIENT_CHECKPOINTING=false", "gradient_checkpointing", False),
        ("MINIMUM_RESOLUTION=512", "minimum_image_size", 512.0),
        ("VALIDATION_STEPS=5", "validation_step_interval", 5),
        ("CHECKPOINTING_STEPS=9", "checkpoint_step_interval", 9),
        ("CHECKPOINTING_LIMIT=2", "checkpoints_total_limit", 2),
        ("HUB_MODEL_NAME=me/it", "hub_model_id", "me/it"),
        ("MODEL_NAME=black-forest-labs/FLUX.1-dev", "pretrained_model_name_or_path", "black-forest-labs/FLUX.1-dev"),
        ('LEARNING_RATE=8e-7 #@param {type:"number"}', "learning_rate", 8e-7),
        ("lora_rank=4", "lora_rank", 4),
        ("SIMPLETUNER_LORA_RANK=4", "lora_rank", 4),
        ("VAE_BATCH_SIZE=3", "vae_batch_size", 3),
    ],
)
def test_names_become_options(line, key, value):
    config, problems = loaded(line)
    assert config.values()[key] == value and config.origin(key) == "config.env:1:1"
    assert said(problems) == []


def test_a_name_that_differs_from_its_option_is_remembered():
    config, problems = loaded("TRAINING_SEED=7\nLORA_RANK=4\nMAX_NUM_STEPS=3")
    assert config.written == {"seed": "TRAINING_SEED", "max_train_steps": "MAX_NUM_STEPS"} and problems == []


def test_dora_and_two_names_of_one_option():
    _, problems = loaded("USE_DORA=true")
    assert ("use_dora=true is read as flux_lora_module_type=dora", "config.env:1:1") in said(problems, "notice")
    assert said(loaded("USE_DORA=false")[1]) == []
    _, problems = loaded("TRAINING_DYNAMO_BACKEND=no\nTRAINER_DYNAMO_BACKEND=inductor")
    message = "dynamo_backend is given twice with different values, once as TRAINING_DYNAMO_BACKEND and"
    assert said(problems)[0][0].startswith(message) and said(problems)[0][1] == "config.env:1:1 and config.env:2:1"


@pytest.mark.parametrize(
    ("line", "message", "severity"),
    [
        ("USE_BITFIT=true", "layer_freeze_strategy is not offered", "error"),
        ("USE_BITFIT=false", "layer_freeze_strategy is off", "notice"),
        ("PUBLISHING_CONFIG=x.json", "publishing_config is not offered", "error"),
        ("FLUX=true", "FLUX is read as model_family=flux", "notice"),
        ("FLUX=false", "no other model is trained here", "error"),
        ("KOLORS=true", "KOLORS is for other model families", "error"),
        ("KOLORS=false", "KOLORS is off", "notice"),
        ("CONTROLNET=false", "controlnet is off", "notice"),
        ("USE_XFORMERS=true", "enable_xformers_memory_efficient_attention has no effect", "notice"),
        ("MIN_SNR_GAMMA=5", "snr_gamma has no effect", "notice"),
        ("DELETE_SMALL_IMAGES=0", "delete_unwanted_images is off", "notice"),
        ("DELETE_SMALL_IMAGES=1", "delete_unwanted_images is not offered", "error"),
        ("CONFIG_BACKEND=json", "CONFIG_BACKEND has no effect in a file", "notice"),
        ("ENV=default", "ENV has no effect in a file", "notice"),
        ("ENV=portraits", "ENV=portraits chooses no configuration", "error"),
        ("CONFIG_PATH=x.json", "CONFIG_PATH=x.json chooses no configuration", "error"),
    ],
)
def test_names_that_mean_nothing_here_are_told(line, message, severity):
    config, problems = loaded(line)
    (problem,) = problems
    assert message in problem.message and problem.severity == severity and problem.where == "config.env:1:1"
    assert config.exports == {}


def test_extra_args_win_over_the_other_names_of_their_file_and_lose_against_the_layers_above():
    text = 'VALIDATION_STEPS=1\nTRAINER_EXTRA_ARGS="--validation_step_interval=2 --seed=2"\nLORA_RANK=2\n'
    text += 'DEBUG_EXTRA_ARGS="--lora_rank=3 --seed=9 --validation_step_interval=9"\n'
    config, problems = loaded(text, {"SIMPLETUNER_SEED": "5"})
    assert problems == []
    assert [config.values()[key] for key in ("validation_step_interval", "lora_rank", "seed")] == [2, 3, 5]
    assert config.origin("validation_step_interval") == "config.env:2:1"
    assert config.origin("seed") == "env SIMPLETUNER_SEED"
    _, problems = loaded('TRAINER_EXTRA_ARGS="--lora_rnak=2 \'x"')
    assert said(problems) == [("TRAINER_EXTRA_ARGS: No closing quotation", "config.env:1:1")]


def test_extra_args_over_several_lines():
    text = "export TRAINER_EXTRA_ARGS=\"--seed=1 \\\n  # --seed=2 \\\n  --instance_prompt 'a cat' \\\n\"\n"
    text += 'TRAINER_EXTRA_ARGS+="--lora_rank 4"\n'
    text += 'export TRAINER_EXTRA_ARGS="${TRAINER_EXTRA_ARGS} --max_train_steps=3"\n'
    config, problems = loaded(text)
    expected = {"seed": 1, "instance_prompt": "a cat", "lora_rank": 4, "max_train_steps": 3}
    assert problems == [] and {key: config.values()[key] for key in expected} == expected


def test_extra_args_are_joined_as_words():
    config, problems = loaded("TRAINER_EXTRA_ARGS=--seed=1\nTRAINER_EXTRA_ARGS+=--lora_rank=4\n")
    assert problems == [] and (config.values()["seed"], config.values()["lora_rank"]) == (1, 4)


def test_other_names_go_to_the_trainer_unless_the_shell_has_them():
    text = "export HF_ENDPOINT=https://hf-mirror.com\nBASE_DIR=/data\nOUTPUT_DIR=$BASE_DIR/out\nHF_HOME=/mine\n"
    config, problems = loaded(text, {"HF_HOME": "/theirs"})
    assert problems == [] and config.exports == {"HF_ENDPOINT": "https://hf-mirror.com", "BASE_DIR": "/data"}
    assert config.values()["output_dir"] == "/data/out"
    config.write(Path("resolved.json"))
    assert "hf-mirror" not in Path("resolved.json").read_text()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LORA_RNAK", "LORA_RANK"),
        ("MAX_NUM_STEP", "MAX_NUM_STEPS"),
        ("max_num_steps", "MAX_NUM_STEPS"),
        ("SIMPLETUNER_LORA_RNAK", "SIMPLETUNER_LORA_RANK"),
        ("SIMPLETUNER_MAX_NUM_STEPS", "MAX_NUM_STEPS"),
        ("SIMPLETUNER_QQQQ", ""),
    ],
)
def test_a_mistyped_name_goes_to_the_trainer_with_a_warning(name, meant):
    config, (problem,) = loaded(f"{name}=4")
    assert problem.message == f"{name} is no option and is handed to the trainer" and problem.severity == "warning"
    assert problem.fix == (f"did you mean {meant}?" if meant else "simpletuner train --help lists the options")
    assert problem.where == "config.env:1:1" and config.exports == {name: "4"}


def test_names_of_other_programs_and_settings_of_this_one_are_no_mistakes():
    names = ("HF_TOKEN", "HF_HOME", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NCCL_P2P_DISABLE", "WANDB_PROJECT")
    names += ("PYTORCH_CUDA_ALLOC_CONF", "BASE_DIR", "DATA_DIR", "PATH", "TMPDIR", "SIMPLETUNER_LOG_LEVEL")
    config, problems = loaded("".join(f"{name}=1\n" for name in names))
    assert problems == [] and set(config.exports) == set(names)


def test_bare_names_of_the_process_count_only_for_the_backend_env():
    environ = {"OUTPUT_DIR": "/theirs", "TRAINING_SEED": "3", "LORA_ALPHA": "9", "SIMPLETUNER_LORA_RANK": "4"}
    environ |= {"LORA_RANK": "5"}
    config, problems = loaded("TRAINING_SEED=1", environ)
    assert problems == [] and config.values()["seed"] == 1 and "output_dir" not in config.given
    config, problems = loaded("TRAINING_SEED=1", environ, backend="env")
    assert problems == [] and (config.values()["seed"], config.values()["output_dir"]) == (3, "/theirs")
    assert (config.origin("seed"), config.written["seed"]) == ("env TRAINING_SEED", "TRAINING_SEED")
    assert config.values()["lora_rank"] == 4 and "lora_alpha" not in config.given


def test_cmd_reads_neither_files_nor_variables():
    environ = {"SIMPLETUNER_SEED": "3", "TRAINER_EXTRA_ARGS": "--lora_rank=4"}
    config, problems = load(Files(backend="cmd"), {"max_train_steps": "5"}, environ)
    assert problems == [] and config.given == {"max_train_steps"}


def test_a_bad_line_is_told_beside_the_other_findings():
    config, problems = loaded("SEED=$(x)\nLORA_RANK=four\nMAX_NUM_STEPS=9\n")
    assert [where for _, where in said(problems)] == ["config.env:1:6", "config.env:2:1"]
    assert config.values()["max_train_steps"] == 9


@pytest.mark.parametrize(("content", "message"), [(b"A=\xff", "UTF-8"), (b"A=1\0", "zero byte"), (None, "")])
def test_a_file_that_cannot_be_read_stops_before_anything_is_guessed(content, message):
    if content is not None:
        Path("config.env").write_bytes(content)
    config, problems = load(Path("config.env"), {}, {})
    assert dict(config.groups) == {} and len(said(problems)) == 1 and message in said(problems)[0][0]


# ---- a file as people have it

REAL = """
# 'lora' or 'full'
export MODEL_TYPE='lora'
export STABLE_DIFFUSION_3=false
export FLUX=true
export FLUX_LORA_TARGET=all # options
export USE_DORA=false
export RESUME_CHECKPOINT="latest"
export CHECKPOINTING_STEPS=150
export CHECKPOINTING_LIMIT=2
export LEARNING_RATE=8e-5 #@param {type:"number"}
export MODEL_NAME="black-forest-labs/FLUX.1-dev"
export TRACKER_PROJECT_NAME="${MODEL_TYPE}-training"
export MAX_NUM_STEPS=3000
export NUM_EPOCHS=0
export DATALOADER_CONFIG="config/multidatabackend.json"
export OUTPUT_DIR="output/models"
export PUSH_TO_HUB="false"
export HUB_MODEL_NAME=$TRACKER_PROJECT_NAME
export RESOLUTION=1024
export RESOLUTION_TYPE="pixel"
export MINIMUM_RESOLUTION=$RESOLUTION
export VALIDATION_PROMPT="a teddy bear at a picnic"
export VALIDATION_RESOLUTION=$RESOLUTION
export VALIDATION_NEGATIVE_PROMPT=""
export TRAIN_BATCH_SIZE=1
export LR_SCHEDULE="polynomial"
#export LR_WARMUP_STEPS=$((MAX_NUM_STEPS / 10))
export LR_WARMUP_STEPS=100
export MIXED_PRECISION="bf16"                # Might not be supported on all GPUs.
export TRAINING_SEED=42
export ACCELERATE_EXTRA_ARGS=""              # --multi_gpu
export TRAINING_DYNAMO_BACKEND='no'
export TRAINER_EXTRA_ARGS=""
export TRAINER_EXTRA_ARGS="${TRAINER_EXTRA_ARGS} --lora_rank=16 --lora_alpha=16"
export TOKENIZERS_PARALLELISM=false
"""


def test_a_whole_file_as_people_have_it(here):
    config, problems = loaded(REAL)
    assert [(m, w) for m, w in said(problems) if "not yet available" not in m] == [] and said(problems, "warning") == []
    expected = {
        "max_train_steps": 3000, "num_train_epochs": 0, "lora_rank": 16, "minimum_image_size": 1024.0, "seed": 42,
        "validation_negative_prompt": "", "output_dir": str(here / "output/models"), "learning_rate": 8e-5,
        "validation_resolution": "1024", "checkpoint_step_interval": 150, "model_family": "flux",
    }  # fmt: skip
    assert {key: config.values()[key] for key in expected} == expected
    assert config.exports == {"TOKENIZERS_PARALLELISM": "false"} and set(config.values()) == set(OPTIONS)
