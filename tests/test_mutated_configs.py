"""Whatever a file holds, the answer is a configuration or problems with their place, never a traceback."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from simpletuner.check import check
from simpletuner.cli.surfaces import ROOT
from simpletuner.config import Config, Files, load
from simpletuner.errors import Problem

SHIPPED = (ROOT / "config/config.json.example").read_text("utf-8")
JSON = [
    SHIPPED,
    '// c\n{"--lora_rank": "16", /* x */ "optimizer_config": {"a": [1, 2.5e3, null]}, "t5_padding": "zero",}',
    '{\n  "flow_custom_timesteps": [0.5, 1],\n  "webhook_config": [{"url": "{env:URL}"}],\n  "lr_end": "1e-7"\n}',
]
TOML = [
    '--seed = 1\nlearning-rate = 2e-4\nvalidation_prompt = """a\nb"""\n[webhook_config]\nurl = \'x\'\n',
    'flow_custom_timesteps = [ 0.5, # c\n 1 ]\noptimizer_config = { a = 1 }\noutput_dir = "out"\nseed = 1979-05-27\n',
]
ENV = [
    "export MODEL_TYPE='lora' # x\nTRAINING_SEED=42\nexport TRAINER_EXTRA_ARGS=\"--lora_rank=4 \\\n --seed=1\"\n",
    'OUTPUT_DIR="${BASE:-out}/x"\nexport HF_HOME=/x; RESOLUTION=1024\nMINIMUM_RESOLUTION=$RESOLUTION\nFLUX=true\n',
]
PIECES = [
    '"', "'", "{", "}", "[", "]", ",", ":", "=", "+=", "#", "//", "/*", "\\", "$", "`", "${", "$(", "{}", "[]",
    '"seed": ', "--", "-", "_", "..", "\n", "\r\n", "\t", "\0", "\x85", "\x0b", "\ufeff", "ä", "\ud7ff", "\\ud800",
    '"""', "{env:HOME}", "1e999", "NaN", "inf", "null", "true", "0x1", "1_000", "9" * 400, "9" * 5000, "[" * 200,
    "~root/\0",
]  # fmt: skip
NUMBER = {"json": 2000, "toml": 1500, "env": 1500}


def mutated(text: str, dice: random.Random) -> str:
    """The text after one to four accidents."""
    for _ in range(dice.randint(1, 4)):
        at, length = dice.randrange(len(text) + 1), dice.choice([0, 1, 1, 2, 5, 30])
        piece = dice.choice(["", dice.choice(PIECES), chr(dice.randrange(0x20, 0x250)), text[at : at + length] * 2])
        text = text[:at] + piece + text[at + length :]
        if dice.random() < 0.02:
            text = text[: dice.randrange(len(text) + 1)]
    return text


@pytest.mark.parametrize(("kind", "texts"), [("json", JSON), ("toml", TOML), ("env", ENV)], ids=["json", "toml", "env"])
def test_mutated_texts_give_a_configuration_or_problems(kind, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dice, path = random.Random(4), Path(f"config.{kind}")
    read = refused = 0
    for number in range(NUMBER[kind]):
        text = mutated(texts[number % len(texts)], dice)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        files, environ = Files(path, backend="env" if kind == "env" else ""), {"HOME": "/home", "LORA_RANK": "x"}
        if number % 4:
            config, problems = load(files, {}, environ)
        else:
            checked = check(files, {}, environ)
            config, problems = checked.config, checked.problems
        assert isinstance(config, Config) and all(isinstance(problem, Problem) for problem in problems)
        assert all(problem.message and (problem.where or problem.keys) for problem in problems), text
        json.dumps([problem.record() for problem in problems])
        json.dumps(config.values())
        refused += any(problem.severity == "error" for problem in problems)
        read += bool(config.groups)
    assert min(read, refused) > NUMBER[kind] / 10  # the accidents are neither all harmless nor all deadly


def test_bytes_that_are_no_text(tmp_path):
    dice = random.Random(4)
    for kind in NUMBER:
        path = tmp_path / f"config.{kind}"
        for _ in range(50):
            path.write_bytes(dice.randbytes(40))
            _, problems = load(path, {}, {})
            assert any(problem.severity == "error" and str(path) in problem.where for problem in problems)
