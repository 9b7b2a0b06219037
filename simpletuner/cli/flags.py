"""The flags that every command has: --json, --debug, -q and --no-input."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click

NAMES = {  # field of Flags -> how it is written
    "json": ("--json",),
    "debug": ("--debug",),
    "quiet": ("-q", "--quiet"),
    "no_input": ("--no-input",),
}
HELP = {
    "json": "Machine-readable output on stdout, errors too.",
    "debug": "Show tracebacks.",
    "quiet": "No notices.",
    "no_input": "Ask nothing, even on a terminal.",
}


@dataclass(frozen=True)
class Flags:
    """What was said of the way to talk. It lies at the root of click's context."""

    json: bool = False
    debug: bool = False
    quiet: bool = False
    no_input: bool = False


def read(words: Sequence[str], environ: Mapping[str, str]) -> Flags:
    """From the bare words, so that a command line that click refuses is refused in the form that was asked for."""
    before = words[: words.index("--")] if "--" in words else words
    said = {field: any(name in before for name in names) for field, names in NAMES.items()}
    said["debug"] |= environ.get("SIMPLETUNER_DEBUG", "").lower() in ("1", "true", "yes", "on")
    return Flags(**said)


def current() -> Flags:
    """Those of the command that is running."""
    context = click.get_current_context(silent=True)
    flags = context.find_root().obj if context else None
    return flags if isinstance(flags, Flags) else Flags()


def may_ask() -> bool:
    """Whether somebody is there to answer a question."""
    return sys.stdin is not None and sys.stdin.isatty() and not current().no_input


def add(command: click.Command) -> None:
    """Gives a command, and those below it, the flags that it does not declare itself."""
    taken = {name for parameter in command.params for name in parameter.opts}
    for field, names in NAMES.items():
        if not taken & set(names):
            option = click.Option([*names, f"flag_{field}"], is_flag=True, expose_value=False, help=HELP[field])
            command.params.append(option)
    for below in getattr(command, "commands", {}).values():
        add(below)
