"""The completion scripts, in the shells themselves: bash always, zsh and fish where they are installed."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time

import pytest
from program import alone, run

from simpletuner.cli import completion
from simpletuner.cli.completion import scripts, table
from simpletuner.cli.main import COMMANDS
from simpletuner.config import OPTIONS
from simpletuner.retired import NOT_YET

# Fish's own prompt needs more than a dumb terminal; it is asked through `complete -C`.
SHELLS = [pytest.param(s, marks=pytest.mark.skipif(not shutil.which(s), reason=s)) for s in ("bash", "zsh")]
QUIET_SECONDS, MOST_SECONDS = 0.3, 20  # a shell that has said nothing for so long waits for keys
TARGET_SECONDS = 0.3  # of one completion

CASES = [  # what is typed -> what is offered, at least; and one word that is not
    ("simpletuner ", {"train", "validate", "examples"}, "lora_rank="),
    ("simpletuner exam", {"examples"}, "train"),
    ("simpletuner examples ", {"list", "copy"}, "train"),
    ("simpletuner examples copy ", {"nano"}, "list"),
    ("simpletuner help lora_r", {"lora_rank"}, "lora_rank="),
    ("simpletuner completion ", set(completion.SHELLS), "nano"),
    ("simpletuner train --opt", {"--optimizer", "--optimizer_config"}, "--output_dir"),
    ("simpletuner train --res", {"--resume", "--resolution"}, "--seed"),
    ("simpletuner train --resume ", {"latest", "none"}, "--seed"),
    ("simpletuner train --optimizer torch-adam", {"torch-adam", "torch-adamw", "torch-adamax"}, "adamw_bf16"),
    ("simpletuner train lora_r", {"lora_rank="}, "lora_rank"),
    ("simpletuner train seed=4 lr_sch", {"lr_scheduler="}, "seed="),
    ("simpletuner train --no-grad", {"--no-gradient_checkpointing"}, "--gradient_checkpointing"),
    ("simpletuner train --example ", {"nano"}, "seed="),
    ("simpletuner validate --qu", {"--quiet"}, "--seed"),
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    return alone(monkeypatch, tmp_path)


def offered_by_bash(line):
    code = f'source {completion.path("bash")}; COMP_LINE="{line}"; COMP_POINT={len(line)}; _simpletuner; '
    code += 'printf "%s\\n" "${COMPREPLY[@]}"'
    return subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)


def offered_by_fish(line):
    code = f"source {completion.path('fish')}; complete -C '{line}'"
    return subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, check=True)


def words(done):
    assert done.stderr == ""
    return {line.split("\t")[0] for line in done.stdout.splitlines()}


@pytest.mark.parametrize(("line", "wanted", "unwanted"), CASES, ids=[case[0] for case in CASES])
def test_bash_offers(line, wanted, unwanted):
    found = words(offered_by_bash(line))
    assert wanted <= found and unwanted not in found


@pytest.mark.skipif(not shutil.which("fish"), reason="fish")
@pytest.mark.parametrize(("line", "wanted", "unwanted"), CASES, ids=[case[0] for case in CASES])
def test_fish_offers(line, wanted, unwanted):
    found = words(offered_by_fish(line))
    assert wanted <= found and unwanted not in found


def test_the_choices_behind_an_equals_sign():
    # bash gets what stands behind the sign, because the sign ends a word there.
    assert words(offered_by_bash("simpletuner train lr_scheduler=cos")) == {"cosine", "cosine_with_restarts"}
    assert words(offered_by_bash("simpletuner train --lr-scheduler=cos")) == {"cosine", "cosine_with_restarts"}
    if shutil.which("fish"):
        assert "lr_scheduler=cosine" in words(offered_by_fish("simpletuner train lr_scheduler=cos"))


def test_choices_of_later_versions_are_not_offered():
    assert "prodigy" not in words(offered_by_bash("simpletuner train optimizer=p"))


def test_a_completion_is_quick():
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        offered_by_bash("simpletuner train --optimizer torch-adam")
        taken.append(time.perf_counter() - begun)
    assert min(taken) < TARGET_SECONDS


def typed(shell, keys):
    """What a simpletuner that prints its words was given, after `keys` were typed into the shell itself."""
    setup = {
        "bash": "source {path}; simpletuner() {{ echo GOT $*; }}",
        "zsh": "autoload -U compinit; compinit -D; source {path}; simpletuner() {{ print GOT $* }}",
    }[shell].format(path=completion.path(shell))
    argv = {"bash": ["bash", "--norc", "-i"], "zsh": ["zsh", "-f", "-i"]}[shell]
    child, terminal = pty.fork()
    if not child:
        os.environ["TERM"] = "dumb"
        os.execvp(argv[0], argv)
    try:
        read(terminal)
        os.write(terminal, f"{setup}\n".encode())
        read(terminal)
        for key in keys:  # a shell that reads ahead may take a tab for pasted text
            os.write(terminal, key.encode())
            if key == "\t":
                read(terminal)
        os.write(terminal, b"\n")
        return read(terminal)
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def read(terminal):
    text, end = b"", time.monotonic() + MOST_SECONDS
    while time.monotonic() < end and select.select([terminal], [], [], QUIET_SECONDS if text else 2.0)[0]:
        text += os.read(terminal, 65536)
    return text.decode(errors="replace")


@pytest.mark.parametrize("shell", SHELLS)
def test_tabs_typed_into_a_shell_complete_a_command(shell):
    keys = "simpletuner tra\toptimizer=torch-adaf\t lr_sch\tcosine_with_r\t --gradient_checkpointin\t"
    text = typed(shell, keys)
    assert "GOT train optimizer=torch-adafactor lr_scheduler=cosine_with_restarts --gradient_checkpointing" in text


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_scripts_are_up_to_date(shell):
    fresh = getattr(scripts, shell)()
    assert completion.path(shell).read_text() == fresh, "run: python -m simpletuner.cli.surfaces"
    done = run("completion", shell)
    assert done.returncode == 0 and done.stdout == fresh


def test_the_table_holds_every_command_and_every_option_that_can_be_used():
    assert {command.name for command in table.commands() if " " not in command.name} == {"", *COMMANDS}
    assert set(table.keys()) == set(OPTIONS) - set(NOT_YET)
