"""What holds for every command: the common flags, errors as JSON, the answer to what is no command, narrow help."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest
from program import COMMAND, alone, run, start

from simpletuner.cli import absent, failures, flags, layout, problems
from simpletuner.cli.flags import Flags
from simpletuner.cli.main import COMMANDS, program
from simpletuner.errors import ConfigError, DataError, Problem


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    return alone(monkeypatch, tmp_path)


def everything():
    """(words, command) of every command and of those below it."""

    def below(command, context, words):
        yield words, command
        for name in command.list_commands(context) if isinstance(command, click.Group) else []:
            yield from below(command.get_command(context, name), context, (*words, name))

    yield from below(program, click.Context(program), ())


EVERY = dict(everything())


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_command_has_the_common_flags_and_its_help_is_as_wide_as_the_terminal(words):
    done = run(*words, "-h", COLUMNS="60")
    assert done.returncode == 0 and done.stdout.startswith(f"Usage: simpletuner {' '.join(words)}".rstrip())
    for name in ("--json", "--debug", "-q, --quiet", "--no-input", "-h, --help"):
        assert f"  {name} " in done.stdout
    narrow = run(*words, "--help", COLUMNS="40").stdout.splitlines()
    assert max(map(len, narrow)) <= 40 < max(map(len, done.stdout.splitlines()))


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("jobs",),
        ("--nonsense",),
        ("report",),
        ("report", "nowhere"),
        ("examples", "copy", "nanno"),
        ("examples", "nonsense"),
        ("help", "lora_rnak"),
        ("validate", "--config", "nowhere.json"),
        ("train", "--config", "nowhere.json"),
        ("generate", "--nonsense", "1"),
        ("completion", "tcsh"),
    ],
    ids=" ".join,
)
def test_an_error_is_a_json_record_on_request_and_else_ours(words):
    people = run(*words)
    assert people.returncode == 2 and people.stdout == "" and "Traceback" not in people.stderr
    assert people.stderr.startswith("error[config]: ") and "  fix: " in people.stderr
    assert people.stderr.endswith("Nothing was started. (exit 2)\n")
    machine = run(*words, "--json")
    record = json.loads(machine.stdout)
    assert machine.returncode == record["exit_code"] == 2 and machine.stderr == ""
    assert all(problem["message"] in people.stderr for problem in record["problems"])


def test_mistakes_in_a_configuration_are_json_records_too(here):
    (here / "config.json").write_text('{"lora_rnak": 4}')
    done = run("train", "--json")
    messages = [problem["message"] for problem in json.loads(done.stdout)["problems"]]
    assert done.returncode == 2 and 'unknown option "lora_rnak"' in messages


@pytest.mark.parametrize(
    "words",
    ["version", "env", "validate -e nano", "plan -e nano", "dataset scan -e nano", "cache status -e nano",
     "doctor -e nano --offline", "examples list", "checkpoint list -e nano", "train -e nano --dry-run"],
)  # fmt: skip
def test_json_may_be_said_before_the_command(words):
    before, after = run("--json", *words.split()), run(*words.split(), "--json")
    assert before.returncode == after.returncode and json.loads(before.stdout).keys() == json.loads(after.stdout).keys()


def test_words_behind_two_dashes_are_no_flags():
    assert flags.read(["--json", "--", "-q"], {}) == Flags(json=True)
    assert flags.read(["-q", "--debug", "--no-input"], {}) == Flags(quiet=True, debug=True, no_input=True)
    assert flags.read([], {"SIMPLETUNER_DEBUG": "1"}) == Flags(debug=True)


def test_quiet_leaves_out_notices_and_nothing_else(here):
    (here / "config.json").write_text('{"snr_gamma": 5, "lora_rnak": 4,}')
    loud, quiet = run("validate").stderr, run("validate", "-q").stderr
    assert "\nnotice: snr_gamma" in loud and "\nnotice: " not in quiet
    assert "lora_rnak" in quiet and "warning[config]: trailing comma" in quiet


def test_nothing_is_asked_without_a_terminal_or_with_no_input(monkeypatch):
    leader, follower = os.openpty()
    with open(os.devnull) as nobody, open(leader, "rb"), open(follower) as terminal:
        monkeypatch.setattr(sys, "stdin", nobody)
        assert not flags.may_ask()
        monkeypatch.setattr(sys, "stdin", terminal)
        assert flags.may_ask()
        with click.Context(program, obj=Flags(no_input=True)):
            assert not flags.may_ask()


# ---- what is no command


@pytest.mark.parametrize("name", sorted(absent.NOT_OFFERED))
def test_commands_of_the_original_get_an_answer(name):
    done = run(name)
    assert done.returncode == 2 and f"{name} is not offered: " in done.stderr


def test_the_web_ui_is_named_only_where_it_is():
    with_it, without = (absent.no_command("jobs", names).problems[0].fix for names in (["server"], ["train"]))
    assert "simpletuner server" in with_it and "server" not in without


def test_a_command_to_come_says_so_and_what_to_do_meanwhile():
    for name in set(absent.LATER) - set(COMMANDS):
        assert f"{name} is not yet available" in run(name).stderr


def test_no_command_is_both_there_and_absent():
    assert not set(COMMANDS) & {*absent.LATER, *absent.NOT_OFFERED}


# ---- a command line that cannot be read


@pytest.mark.parametrize("words", [words for words, found in EVERY.items() if words and isinstance(found, click.Group)])
def test_a_group_without_a_command_shows_its_help(words):
    done = run(*words)
    assert done.returncode == 2 and done.stdout == "" and done.stderr == run(*words, "--help").stdout
    for said in (("--json", *words), (*words, "--json")):
        (problem,) = json.loads(run(*said).stdout)["problems"]
        assert problem["exit_code"] == 2 and problem["message"] == "missing command"
        assert problem["fix"] == f"simpletuner {' '.join(words)} --help"


@pytest.mark.parametrize("words", ["validate --config", "cache verify --config", "report a b", "examples copy"])
def test_the_fix_names_the_help_of_the_command(words):
    name = " ".join(words.split()[: 2 if words.split()[0] in ("cache", "examples") else 1])
    assert f"  fix: simpletuner {name} --help\n" in run(*words.split()).stderr


def test_a_message_of_click_is_one_line():
    problem, code = explained(click.UsageError("Choose from:\n\ta,\n\tb"))
    assert code == 2 and problem.message == "choose from: a, b"


# ---- endings


def explained(error):
    (problem,), code = failures.explain(error)
    return problem, code


def test_a_bug_asks_for_a_report_and_names_its_place():
    try:
        layout.pairs(None, 80)
    except TypeError as error:
        problem, code = explained(error)
    assert code == 1 and problem.area == "bug" and "simpletuner env" in problem.fix
    assert problem.where.startswith("simpletuner/cli/layout.py:")


def test_what_the_system_says_of_a_disk_is_no_bug(here):
    problem, code = explained(OSError(28, "No space left on device", "out/x"))
    assert code == 7 and problem.message == "out/x: No space left on device" and problem.fix
    assert explained(OSError(104, "Connection reset by peer"))[1] == 1


def test_errors_of_our_own_keep_their_records_and_their_lowest_code():
    assert failures.explain(DataError("empty"))[1] == 3
    found, code = failures.explain(ConfigError("wrong", fix="mend it"))
    assert code == 2 and found[0].fix == "mend it"


def test_a_bug_in_a_command_ends_with_one_and_shows_its_traceback_only_on_request(monkeypatch):
    def fail(*_):
        raise RuntimeError("broken inside")

    monkeypatch.setattr("simpletuner.cli.sources.find", fail)
    done = run("env")
    assert done.returncode == 1 and done.stderr.startswith("error[bug]: RuntimeError: broken inside")
    assert "Traceback" not in done.stderr and "Traceback" in run("env", "--debug").stderr
    assert json.loads(run("env", "--json").stdout)["exit_code"] == 1


@pytest.mark.parametrize("words", ["help --json lora_rank", "validate --json", "train --help-all"])
@pytest.mark.parametrize("redirection", ["| true", "| head -c 1 > /dev/null", ">&-"])
def test_a_reader_that_has_gone_changes_no_exit_code(here, words, redirection):
    (here / "config.json").write_text('{"lora_rnak": 4}')
    wanted = 2 if words.startswith("validate") else 0
    line = f"{' '.join(COMMAND)} {words} {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == wanted and done.stderr == ""


def test_a_closed_stderr_spoils_no_output():
    line = f"{' '.join(COMMAND)} version 2>&-"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == start("version").stdout


# ---- findings on a terminal


LONG = Problem(
    "resolution: " + "many words " * 20 + "/a/path/of/more/than/forty/columns/that/stays/whole",
    where="config/config.json:7:3",
    details=("another " * 20, '"key": 1, ' * 15, "     ^"),
    fix="first look at the file " * 3 + "and then: simpletuner examples copy nano",
)


@pytest.mark.parametrize("width", [40, 60, 120])
def test_a_finding_is_cut_at_blanks_and_says_the_same(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = problems.lines(LONG, layout.columns())
    excerpt = lines.index("  " + LONG.details[1])  # a caret points into it
    assert lines[excerpt + 1] == "       ^"
    words = [word for line in lines for word in line.split()]
    assert words == [word for line in LONG.lines(width) for word in line.split()]
    cut = [line for number, line in enumerate(lines) if number != excerpt]
    assert all(len(line) <= width or len(line.split()) == 1 for line in cut)
    assert any(line.endswith("simpletuner examples copy nano") for line in lines)


def test_the_place_stands_at_the_right_where_it_fits(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    problem = Problem("unknown option", where="config.json:2:3")
    assert problems.lines(problem, 60) == ["error[config]: unknown option" + "config.json:2:3".rjust(31)]


def test_what_goes_into_a_file_stays_whole(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert problems.lines(LONG, 60) == LONG.lines(60)


# ---- layout


def test_pairs_share_a_line_where_there_is_room():
    rows = [("a", "short"), ("longer", "also short")]
    assert layout.pairs(rows, 80) == ["  a       short", "  longer  also short"]
    assert layout.pairs([("x" * 20, "meaning")], 40) == ["  " + "x" * 20, "    meaning"]


def test_every_line_fits():
    rows = [("--name VALUE", "a long meaning of many words " * 5), ("-x", "y")]
    for width in range(40, 121):
        assert max(map(len, layout.pairs(rows, width))) <= width
