"""`simpletuner validate`: schema, rules, paths, dataset file, prompt library. No network, no GPU, no torch."""

from __future__ import annotations

import json
import sys

import click

from simpletuner.check import check
from simpletuner.cli import problems, sources
from simpletuner.config import OPTIONS
from simpletuner.surfaces import shown


@click.command(
    "validate",
    context_settings={"ignore_unknown_options": True},
    help="Checks a configuration with its datasets and prompts, and reports every mistake at once.",
)
@click.option(
    "--show", "show", is_flag=True, help="Print key, value and origin of everything that differs from the defaults."
)
@click.option("--show-all", is_flag=True, help="Print all options.")
@sources.shared
def command(
    config_path: str | None,
    env: str | None,
    example: str | None,
    as_json: bool,
    debug: bool,
    words: tuple[str, ...],
    show: bool,
    show_all: bool,
) -> None:
    given = sources.find(config_path, env, example, words)
    checked = check(given.path, given.overrides)
    code = problems.exit_code(checked.problems)
    rows = _rows(checked.config, show_all) if show or show_all else []
    if as_json:
        record = {"exit_code": code, "problems": [p.record() for p in checked.problems]}
        if rows:
            record["options"] = [{"key": k, "value": v, "origin": o} for k, v, o in rows]
        click.echo(json.dumps(record, ensure_ascii=False, indent=2))
        sys.exit(code)
    for key, value, origin in rows:
        click.echo(f"{key} = {shown(value)}   ({origin})")
    problems.show(checked.problems)
    if code:
        print(problems.summary(checked.problems, code), file=sys.stderr)
    else:
        datasets = checked.datasets.images if checked.datasets else ()
        click.echo(
            f"ok: {given.path or 'command line'}, {len(datasets)} image dataset{'s' * (len(datasets) != 1)}, {len(checked.prompts)} validation prompts"
        )
    sys.exit(code)


def _rows(config, everything: bool) -> list[tuple[str, object, str]]:  # noqa: ANN001
    values = config.values()
    return [(key, values[key], config.origin(key)) for key in OPTIONS if everything or key in config.origins]
