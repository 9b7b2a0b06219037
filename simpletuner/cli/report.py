"""`simpletuner report RUN`: writes the report of a run anew, from the run's files."""

from __future__ import annotations

import json
from pathlib import Path

import click

from simpletuner.cli import flags
from simpletuner.errors import ConfigError, DiskError
from simpletuner.tracking.report import FILE, build

TRACES = ("config.resolved.json", "events.jsonl", "metrics.jsonl")  # any of them makes a folder a run's


@click.command("report", help="Writes RUN/report.html anew: losses, samples, settings, datasets and events of a run.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--embed", is_flag=True, help="Puts the images inside, so that the page can be sent as one file.")
def command(run: Path, embed: bool) -> None:
    if not any((run / name).is_file() for name in TRACES):
        what = "is no folder of a run" if run.is_dir() else "does not exist"
        raise ConfigError(f"{run} {what}", fix="give the output_dir of a run, such as simpletuner-results/nano")
    try:
        page = build(run, embed=embed)
    except OSError as error:
        raise DiskError(
            f"{run / FILE}: {error.strerror or error}", fix="free some space, or check permissions"
        ) from error
    click.echo(json.dumps({"report": str(page)}, ensure_ascii=False) if flags.current().json else page)
