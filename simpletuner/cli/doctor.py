"""`simpletuner doctor`: one line for each thing that a run needs, and the command that mends what is wrong."""

from __future__ import annotations

import json
import sys

import click

from simpletuner import doctor, machine
from simpletuner.check import Checked, check
from simpletuner.cli import layout, sources
from simpletuner.doctor import Diagnosis
from simpletuner.errors import ConfigError, Problem

INDENT = 24  # columns before the text of a line


@click.command(
    "doctor",
    context_settings=sources.ANY_OPTION,
    help="""Checks this machine, and the configuration found, and says what to do.

Nothing is written but the index of the datasets, as by plan.

\b
simpletuner doctor            everything
simpletuner doctor --offline  the same without asking the model hub
""",
)
@click.option("--offline", is_flag=True, help="Asks no network.")
@sources.shared
def command(asked: sources.Asked, as_json: bool, offline: bool) -> None:
    checked, missing = _configuration(asked)
    found = []
    for diagnosis in doctor.examine(checked, missing, machine.look(), offline=offline):
        found.append(diagnosis)
        if not as_json:
            click.echo(lines(diagnosis, layout.columns()))
    code = next((d.exit_code for d in found if d.exit_code), 0)
    if as_json:
        record = {"exit_code": code, "checks": [diagnosis.record() for diagnosis in found]}
        click.echo(json.dumps(record, ensure_ascii=False, indent=2))
    else:
        print(_summary(found, code), file=sys.stderr)
    sys.exit(code)


def _configuration(asked: sources.Asked) -> tuple[Checked | None, list[Problem]]:
    """The configuration of this folder, or what is wrong with the search for it. The example by default is none."""
    try:
        given = sources.find(asked)
    except ConfigError as error:
        return None, error.problems
    return (None, []) if given.by_default else (check(given.files, given.overrides), [])


def lines(diagnosis: Diagnosis, width: int) -> str:
    """State, title and text; what to do stands below."""
    head = f"{diagnosis.state:<8} {diagnosis.title}"
    rows = layout.pairs([(head.ljust(INDENT - layout.GAP), diagnosis.text)], width, 0)
    if diagnosis.fix:
        rows.append(" " * (INDENT if width > 2 * INDENT else 4) + f"fix: {diagnosis.fix}")  # whole: it is pasted
    return "\n".join(rows)


def _summary(found: list[Diagnosis], code: int) -> str:
    fails, warnings = (sum(d.state == state for d in found) for state in ("fail", "warning"))
    counts = [f"{fails} failed"] * bool(fails) + [f"{warnings} warning{'s' * (warnings != 1)}"] * bool(warnings)
    return f"{', '.join(counts) or 'all is well'} (exit {code})"
