"""`simpletuner help NAME`: everything known about one option, or the help of a command."""

from __future__ import annotations

import click

from simpletuner import surfaces
from simpletuner.config import FORMER, OPTIONS
from simpletuner.errors import ConfigError
from simpletuner.reading import canonical_key
from simpletuner.registry import did_you_mean
from simpletuner.retired import NOT_YET, settle


@click.command(
    "help",
    context_settings={"ignore_unknown_options": True},
    help="Explains an option (its values, default and bounds) or a command.",
)
@click.argument("name")
@click.pass_context
def command(context: click.Context, name: str) -> None:
    if context.parent and (found := context.parent.command.get_command(context.parent, name)):  # type: ignore[attr-defined]
        click.echo(found.get_help(click.Context(found, info_name=name, parent=context.parent)))
        return
    key = canonical_key(name)
    key = FORMER.get(key, key)
    if key in OPTIONS:
        click.echo(surfaces.long_help(OPTIONS[key]))
        return
    known, finding = settle(key, "on", "")
    if not known:
        raise ConfigError(f'no option "{name}"', fix=did_you_mean(key, [*OPTIONS, *NOT_YET]))
    click.echo(finding.message if finding else f"{key} is not yet available in this version")
