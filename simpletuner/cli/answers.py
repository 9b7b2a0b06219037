"""What commands about a configuration share: the configuration, checked, and one answer for people or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from simpletuner.check import Checked, check
from simpletuner.cli import flags, problems, sources
from simpletuner.errors import ConfigError, Problem, exit_code, raise_errors


def usable(asked: sources.Asked) -> Checked:
    """The configuration that was asked for; one error with everything that is wrong with it."""
    given = sources.find(asked)
    checked = check(given.files, given.overrides)
    raise_errors(checked.problems)
    default = Problem("no configuration in this folder: the example nano is used", severity="notice")
    problems.show([*([default] if given.by_default else []), *given.notices, *checked.problems])
    assert checked.datasets is not None  # or there was an error
    return checked


def agreed(lines: Iterable[str], as_json: bool, *, refusal: Problem, denial: Problem) -> None:
    """Shows what would be removed; returns after a typed yes. ConfigError if nobody can be asked, or says no."""
    print("\n".join(lines), file=sys.stderr)
    if as_json or not flags.may_ask():
        raise ConfigError(refusal)
    if click.prompt("Type yes to remove them", default="no", show_default=False, err=True).strip().lower() != "yes":
        raise ConfigError(denial)


def answer(lines: Iterable[str], record: Mapping[str, Any], found: Sequence[Problem], as_json: bool) -> None:
    """Prints the lines, or the record, with what was found wrong, and ends the program if anything was."""
    code = exit_code(found)
    if as_json:
        whole = {"exit_code": code, "problems": [problem.record() for problem in found], **record}
        click.echo(json.dumps(whole, ensure_ascii=False, indent=2))
        sys.exit(code)
    for line in lines:
        click.echo(line)
    problems.show(found)
    if code:
        print(problems.summary(found, code, ending=""), file=sys.stderr)
    sys.exit(code)
