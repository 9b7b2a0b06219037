"""`simpletuner env`: a block that anybody may read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import alone, run

from simpletuner import __version__
from simpletuner.cli.env import clean

TOKEN = "hf_AbCdEfGhIjKlMnOpQr"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    return alone(monkeypatch, tmp_path)


def test_the_block_tells_versions_machine_and_paths():
    lines = run("env").stdout.splitlines()
    assert lines[0] == "```text" and lines[-1] == "```"
    text = "\n".join(lines)
    names = ("python ", "torch ", "RAM ", "GPU", "configuration ", "output_dir ", "hub cache ", "state ")
    assert all(name in text for name in (__version__, *names))


def test_no_secret_and_no_home_folder_is_in_it(here):
    environ = {
        "HF_TOKEN": TOKEN,
        "SIMPLETUNER_AWS_SECRET": "verysecret",
        "HF_ENDPOINT": "https://me:password@mirror.example",
        "TRAINER_EXTRA_ARGS": f"--hub_token {TOKEN} --webhook_config https://discord.com/api/webhooks/1/abcdef",
        "SIMPLETUNER_STATE_DIR": str(here / "home/state"),
    }
    for words in (("env",), ("env", "--json"), ("env", "--config", str(here / "home/nothing.json"))):
        done = run(*words, **environ)
        assert done.returncode == 0
        for hidden in (TOKEN, "verysecret", "password", "abcdef", str(here / "home")):
            assert hidden not in done.stdout
        assert "mirror.example" in done.stdout and "~/state" in done.stdout


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (f"token={TOKEN}", "token=***"),
        (f"x {TOKEN} y", "x hf_*** y"),
        ("s3://key:secret@bucket/a", "s3://***@bucket/a"),
        ("--wandb_api_key 0123abcd --seed 4", "--wandb_api_key *** --seed 4"),
        ("~/plain/path 1e-4", "~/plain/path 1e-4"),
    ],
)
def test_what_is_left_out(text, cleaned):
    assert clean(text) == cleaned


def test_only_the_home_folder_itself_is_shortened(here):
    assert clean(f"{Path.home()}/a, {Path.home()}-old") == f"~/a, {Path.home()}-old"


def test_it_helps_even_where_the_configuration_is_broken(here):
    (here / "config.json").write_text("{")
    done = run("env", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["simpletuner"].startswith(__version__)
