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
from simpletuner.errors import ConfigError, Problem
from simpletuner.surfaces import shown


@click.command(
    "validate",
    context_settings={"ignore_unknown_options": True},
    help="Checks a configuration with its datasets and prompts, and reports every mistake at once.",
)
@click.option("--show", is_flag=True, help="Print key, value and origin of what is not default; --show all prints all.")
@sources.shared
def command(asked: sources.Asked, as_json: bool, show: bool) -> None:
    everything = show and "all" in asked.words
    if everything:
        asked = replace(asked, words=tuple(word for word in asked.words if word != "all"))
    try:
        given = sources.find(asked)
    except ConfigError as error:
        if as_json:
            _print_json(error.problems, error.exit_code, [])
            sys.exit(error.exit_code)
        raise
    checked = check(given.path, given.overrides)
    found = [*given.notices, *checked.problems]
    code = problems.exit_code(found)
    rows = _rows(checked.config, everything) if show else []
    if as_json:
        _print_json(found, code, rows)
        sys.exit(code)
    for key, value, origin in rows:
        click.echo(f"{key} = {shown(value)}   ({origin})")
    problems.show(found)
    if code:
        print(problems.summary(found, code), file=sys.stderr)
    else:
        datasets = checked.datasets.images if checked.datasets else ()
        sets = f"{len(datasets)} image dataset{'s' * (len(datasets) != 1)}"
        click.echo(f"ok: {given.path or 'command line'}, {sets}, {len(checked.prompts)} validation prompts")
    sys.exit(code)


def _rows(config: Config, everything: bool) -> list[tuple[str, Any, str]]:
    values = config.values()
    return [(key, values[key], config.origin(key)) for key in OPTIONS if everything or key in config.origins]


def _print_json(found: list[Problem], code: int, rows: list[tuple[str, Any, str]]) -> None:
    record: dict[str, Any] = {"exit_code": code, "problems": [p.record() for p in found]}
    if rows:
        record["options"] = [{"key": k, "value": v, "origin": o} for k, v, o in rows]
    click.echo(json.dumps(record, ensure_ascii=False, indent=2))
