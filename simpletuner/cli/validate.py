"""`simpletuner validate`: schema, rules, paths, dataset file, prompt library. No network, no GPU, no torch."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import click

from simpletuner.check import check
from simpletuner.cli import problems, sources
from simpletuner.config import OPTIONS, Config
from simpletuner.errors import Problem, exit_code
from simpletuner.surfaces import shown


@click.command(
    "validate",
    context_settings=sources.ANY_OPTION,
    help="Checks a configuration with its datasets and prompts, and reports every mistake at once.",
)
@click.option("--show", is_flag=True, help="Print key, value and origin of what is not default; --show all prints all.")
@sources.shared
def command(asked: sources.Asked, as_json: bool, show: bool) -> None:
    everything = show and "all" in asked.words
    if everything:
        asked = replace(asked, words=tuple(word for word in asked.words if word != "all"))
    given = sources.find(asked)
    checked = check(given.files, given.overrides)
    found = [*given.notices, *checked.problems]
    code = exit_code(found)
    rows = _rows(checked.config, everything) if show else []
    if as_json:
        _print_json(found, code, rows)
        sys.exit(code)
    for row in rows:
        written = f", written {row['written']}" if "written" in row else ""
        click.echo(f"{row['key']} = {shown(row['value'])}   ({row['origin']}{written})")
    problems.show(found)
    if code:
        print(problems.summary(found, code), file=sys.stderr)
    else:
        datasets = checked.datasets.images if checked.datasets else ()
        sets = f"{len(datasets)} image dataset{'s' * (len(datasets) != 1)}"
        click.echo(f"ok: {given.path or 'command line'}, {sets}, {len(checked.prompts)} validation prompts")
    sys.exit(code)


def _rows(config: Config, everything: bool) -> list[dict[str, Any]]:
    """key, value, origin and, if it is another, the name as written of each option that is to be shown."""
    values = config.values()
    rows = []
    for key in OPTIONS:
        if key in values and (everything or key in config.origins):
            written = {"written": config.written[key]} if key in config.written else {}
            rows.append({"key": key, "value": values[key], "origin": config.origin(key), **written})
    return rows


def _print_json(found: list[Problem], code: int, rows: list[dict[str, Any]]) -> None:
    record: dict[str, Any] = {"exit_code": code, "problems": [p.record() for p in found]}
    if rows:
        record["options"] = rows
    click.echo(json.dumps(record, ensure_ascii=False, indent=2))
