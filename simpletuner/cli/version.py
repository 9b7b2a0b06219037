"""`simpletuner version`."""

from __future__ import annotations

import json
import platform

import click

from simpletuner import __version__
from simpletuner.cli import flags


@click.command("version", help="The program's version; with --json also those of Python and the packages it stands on.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, with packages.")
def command(as_json: bool) -> None:
    if not (as_json or flags.current().json):
        click.echo(__version__)
        return
    from simpletuner.software import PACKAGES, versions

    record = {"simpletuner": __version__, "python": platform.python_version(), "packages": versions(PACKAGES)}
    click.echo(json.dumps(record, indent=2))
