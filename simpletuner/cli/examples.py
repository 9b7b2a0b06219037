"""`simpletuner examples list|copy`."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from simpletuner.errors import ConfigError
from simpletuner.examples import EXAMPLES
from simpletuner.registry import did_you_mean


@click.group("examples", help="The packaged examples.")
def command() -> None:
    pass


@command.command("list", help="Name, flavour, memory, time.")
def list_() -> None:
    for example in EXAMPLES.values():
        click.echo(f"{example.name:<10} {example.flavour:<8} {example.memory:<8} {example.time:<8} {example.help}")


@command.command("copy", help="Copies an example's files to config/NAME/. Never overwrites.")
@click.argument("name")
@click.option("--dest", type=click.Path(path_type=Path), help="Another folder.")
def copy(name: str, dest: Path | None) -> None:
    if name not in EXAMPLES:
        raise ConfigError(f'no example "{name}"', fix=did_you_mean(name, EXAMPLES))
    dest = dest or Path("config") / name
    files = sorted(EXAMPLES[name].folder.glob("*.json"))
    if there := [str(dest / f.name) for f in files if (dest / f.name).exists()]:
        raise ConfigError(f"{', '.join(there)} exists already", fix="choose another folder with --dest")
    dest.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, dest / file.name)
        click.echo(dest / file.name)
    click.echo(f"next: simpletuner train --config {dest}")
