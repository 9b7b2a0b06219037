"""What can be typed: commands with their flags, read from click, and options with their choices, from the schema."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import click

from simpletuner.cli.main import program
from simpletuner.config import OPTIONS
from simpletuner.examples import EXAMPLES
from simpletuner.retired import NOT_YET
from simpletuner.schema import Option
from simpletuner.surfaces import to_come

FILES = "@files"  # stands for the names of files, which the shell knows
YES_NO = ("true", "false")
EXAMPLE_NAMES = tuple(EXAMPLES)
# Values that click's own types do not tell: (command or "", flag or argument) -> words.
VALUES = {
    ("", "--example"): EXAMPLE_NAMES,
    ("", "--config"): (FILES,),
    ("", "--from"): EXAMPLE_NAMES,
    ("train", "--resume"): ("latest", "none"),
    ("examples copy", "NAME"): EXAMPLE_NAMES,
}


@dataclass(frozen=True)
class Flag:
    """`values` is None where none follows, and empty where anything may."""

    names: tuple[str, ...]
    help: str
    values: tuple[str, ...] | None


@dataclass(frozen=True)
class Command:
    """`name` with the names of those above it, such as "examples copy"; the program itself has none."""

    name: str
    help: str
    flags: tuple[Flag, ...]
    below: tuple[str, ...]  # names of its own commands
    arguments: tuple[str, ...]  # words for its arguments
    takes_options: bool


def commands() -> list[Command]:
    """All of them, the program first."""
    return list(_walk(program, "", click.Context(program)))


def options() -> list[Flag]:
    """The options that can be used, as flags."""
    usable = [option for option in OPTIONS.values() if option.key not in NOT_YET]
    return [Flag((option.flag,), first_sentence(option.help), _choices(option)) for option in usable]


def keys() -> list[str]:
    return [flag.names[0].lstrip("-") for flag in options()]


def switches() -> list[str]:
    """Options that --no-KEY switches off."""
    return [flag.names[0].lstrip("-") for flag in options() if flag.values == YES_NO]


def first_sentence(text: str) -> str:
    return text.replace("\n", " ").split(". ")[0].rstrip(".")


def _walk(command: click.Command, name: str, context: click.Context) -> Iterable[Command]:
    below = command.list_commands(context) if isinstance(command, click.Group) else []
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    yield Command(
        name,
        first_sentence(command.get_short_help_str(100)),
        tuple(_flag(name, p) for p in command.params if isinstance(p, click.Option) and not p.hidden),
        tuple(below),
        tuple(word for argument in arguments for word in _arguments(name, argument)),
        any(argument.name == "words" for argument in arguments),
    )
    for child in below:
        found = command.get_command(context, child)  # type: ignore[attr-defined]
        assert found is not None
        yield from _walk(found, f"{name} {child}".strip(), context)


def _flag(command: str, option: click.Option) -> Flag:
    values: tuple[str, ...] | None = None
    if not option.is_flag and not option.count:
        told = [VALUES.get((where, name)) for where in (command, "") for name in option.opts]
        values = next((words for words in told if words), _of_type(option.type))
    names = tuple(dict.fromkeys((*option.opts, *option.secondary_opts)))
    return Flag(names, first_sentence(option.help or ""), values)


def _arguments(command: str, argument: click.Argument) -> tuple[str, ...]:
    if command == "help":
        return (*program.list_commands(click.Context(program)), *OPTIONS)
    return VALUES.get((command, argument.human_readable_name)) or _of_type(argument.type)


def _of_type(kind: click.ParamType) -> tuple[str, ...]:
    if isinstance(kind, click.Choice):
        return tuple(map(str, kind.choices))
    return (FILES,) if isinstance(kind, (click.Path, click.File)) else ()


def _choices(option: Option) -> tuple[str, ...]:
    if option.kind == "bool":
        return YES_NO
    if option.kind == "path":
        return (FILES,)
    later = to_come(option)
    return tuple(name for name, _ in option.choices if name and name not in later)
