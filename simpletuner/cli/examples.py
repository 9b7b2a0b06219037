"""`simpletuner examples list|copy`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from simpletuner.cli import flags
from simpletuner.errors import ConfigError
from simpletuner.examples import EXAMPLES, PREFIX
from simpletuner.registry import did_you_mean

COLUMNS = ("name", "flavour", "memory", "time", "help")


@click.group("examples", help="The packaged examples: small trainings that run as they are.")
def command() -> None:
    pass


@command.command("list", help="Name, flavour, memory, time.")
def list_() -> None:
    rows = [{column: getattr(example, column) for column in COLUMNS} for example in EXAMPLES.values()]
    if flags.current().json:
        click.echo(json.dumps({"examples": rows}, ensure_ascii=False, indent=2))
        return
    widths = {column: max(len(row[column]) for row in rows) for column in COLUMNS}
    for row in rows:
        click.echo("  ".join(row[column].ljust(widths[column]) for column in COLUMNS).rstrip())


@command.command("copy", help="Copies an example's files to config/NAME/, as a start for your own. Never overwrites.")
@click.argument("name")
@click.option("--dest", type=click.Path(path_type=Path), metavar="DIR", help="Another folder.")
def copy(name: str, dest: Path | None) -> None:
    if name not in EXAMPLES:
        raise ConfigError(f'no example "{name}"', fix=did_you_mean(name, EXAMPLES))
    dest = dest or Path("config") / name
    files = sorted(EXAMPLES[name].folder.glob("*.json"))
    copies = {f"{PREFIX}{name}/{file.name}": (dest / file.name).as_posix() for file in files}
    if there := [str(dest / f.name) for f in files if (dest / f.name).exists()]:
        verb = "exists" if len(there) == 1 else "exist"
        raise ConfigError(f"{', '.join(there)} {verb} already", fix="choose another folder with --dest")
    dest.mkdir(parents=True, exist_ok=True)
    for file in files:
        text = file.read_text("utf-8")
        for packaged, copied in copies.items():  # what is named in the copy is the copy: it is there to be edited
            text = text.replace(f'"{packaged}"', json.dumps(copied, ensure_ascii=False))
        (dest / file.name).write_text(text, "utf-8")
    if flags.current().json:
        click.echo(json.dumps({"files": [str(dest / file.name) for file in files]}, ensure_ascii=False))
        return
    for file in files:
        click.echo(dest / file.name)
    click.echo(f"next: simpletuner train --config {dest}", err=True)
