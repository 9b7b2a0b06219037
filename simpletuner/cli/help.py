"""`simpletuner help NAME`: everything known about an option, under any of its names, or the help of a command."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click

from simpletuner import retired, schema, surfaces
from simpletuner.cli import flags
from simpletuner.config import FORMER, OPTIONS
from simpletuner.data import options as data
from simpletuner.envfile import NAMES
from simpletuner.errors import ConfigError
from simpletuner.reading import canonical_key
from simpletuner.registry import did_you_mean

IN_DATASETS = "a key of an entry in the dataset file"


@click.command(
    "help",
    context_settings={"ignore_unknown_options": True},
    help="""Explains an option or a command.

\b
simpletuner help lora_rank        values, default, and when it has an effect
simpletuner help validation_steps a former name is led to the present one
simpletuner help cache prune      the help of a command
""",
)
@click.argument("names", nargs=-1, metavar="NAME")
@click.pass_context
def command(context: click.Context, names: tuple[str, ...]) -> None:
    as_json = flags.current().json
    assert context.parent is not None
    if (text := of_command(context.parent, names)) is not None:
        click.echo(json.dumps({"command": " ".join(names), "help": text}) if as_json else text)
        return
    facts = of_option(" ".join(names), context.parent.command.list_commands(context.parent))  # type: ignore[attr-defined]
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False, default=str))
    else:
        click.echo("\n\n".join(str(facts[name]) for name in ("note", "text") if facts.get(name)))


def of_command(program: click.Context, names: tuple[str, ...]) -> str | None:
    """The help of a command, or of one below it; None if there is none."""
    context, found = program, program.command
    for name in names:
        below = found.get_command(context, name) if isinstance(found, click.Group) else None
        if below is None:
            return None
        found = below
        context = below.context_class(below, info_name=name, parent=context)
    return found.get_help(context)


def of_option(name: str, commands: Iterable[str] = ()) -> dict[str, Any]:
    """`text` for people, a `note` on the name, and all fields of the option.

    ConfigError for an unknown name; `commands` are further words that may have been meant.
    """
    written = canonical_key(name)
    key = NAMES.get(written, written.lower())  # of config.env
    key = FORMER.get(key, key)
    notes = [f"{written} is read as {key}."] if key != written else []
    if key in retired.FORMER_SWITCHES:
        state, key, value = retired.FORMER_SWITCHES[key]
        notes = [f"{written}={str(state).lower()} is read as {key}={str(value).lower()}."]
    in_datasets = _of_datasets()
    if key in OPTIONS:
        if key in in_datasets:
            notes.append(f"It is also {IN_DATASETS}, and there it wins.")
        return _facts(OPTIONS[key], notes)
    key = data.KEY_ALIASES.get(key, key)
    if key in in_datasets:
        return _facts(in_datasets[key], [*notes, f"It is {IN_DATASETS}."])
    if key in data.NOT_YET:
        return {"key": key, "text": f"{key} is {IN_DATASETS}. It is not yet available: {data.NOT_YET[key][0]}."}
    known, finding = retired.settle(key, "on", "")
    if not known:
        fix = did_you_mean(key, dict.fromkeys([*OPTIONS, *in_datasets, *commands]))
        raise ConfigError(f'no option and no command "{name}"', fix=fix)
    return {"key": key, "text": finding.message if finding else f"{key} has no effect here"}


def _of_datasets() -> dict[str, schema.Option]:
    """The keys of the dataset file's entries."""
    return schema.options([data.TextEntry]) | schema.options([data.ImageEntry])


def _facts(option: schema.Option, notes: list[str]) -> dict[str, Any]:
    return {"text": surfaces.long_help(option), "note": " ".join(notes), **asdict(option)}
