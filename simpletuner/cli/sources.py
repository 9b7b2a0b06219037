"""Which configuration a command was given: --config, --env, --example, overrides, or what lies in this folder."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from simpletuner import finding
from simpletuner.cli import flags
from simpletuner.errors import ConfigError, Problem, raise_errors
from simpletuner.examples import EXAMPLES, Example
from simpletuner.finding import Files
from simpletuner.overrides import command_line
from simpletuner.registry import did_you_mean


@dataclass(frozen=True)
class Given:
    files: Files
    overrides: dict[str, Any]
    example: Example | None = None
    by_default: bool = False  # the example runs because nothing else was found
    notices: list[Problem] = field(default_factory=list)  # about the search

    @property
    def path(self) -> Path | None:
        """The file that says most, for messages; `files` is what is read."""
        return self.files.path


@dataclass(frozen=True)
class Asked:
    """What the user said about the configuration, not yet looked for."""

    config_path: str | None
    env: str | None
    example: str | None
    words: tuple[str, ...]


ANY_OPTION = {"ignore_unknown_options": True}  # click's setting of commands that take the options of a run
OPTIONS = (
    click.option(
        "--config", "config_path", metavar="PATH", help="Configuration file, or a folder that holds config.json."
    ),
    click.option("--env", metavar="NAME", help="Environment: the folder config/NAME."),
    click.option("-e", "--example", metavar="NAME", help="A packaged example."),
    click.option("--json", "as_json", is_flag=True, help="Machine-readable output on stdout."),
    click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks."),
    click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]..."),
)


def shared(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options that all with a configuration have; `function` gets them as `asked` and `as_json`."""

    @functools.wraps(function)
    def command(
        config_path: str | None,
        env: str | None,
        example: str | None,
        words: tuple[str, ...],
        as_json: bool,
        **rest: Any,
    ) -> None:
        as_json |= flags.current().json  # said before the command's name
        function(Asked(config_path, env, example, words), as_json=as_json, **rest)

    for option in reversed(OPTIONS):
        command = option(command)
    return command


def find(asked: Asked) -> Given:
    """Raises ConfigError if something was asked for and is not there."""
    overrides, problems = command_line(asked.words)
    raise_errors(problems)
    env = asked.env or overrides.pop("env", None)
    example = asked.example or overrides.pop("example", None)
    if example:
        if example not in EXAMPLES:
            raise ConfigError(f'no example "{example}"', fix=did_you_mean(example, EXAMPLES))
        return _example(EXAMPLES[example], overrides, False, [])
    files, notices = finding.find(asked.config_path, env, os.environ)
    raise_errors(notices)
    if not files.any and not overrides:
        return _example(EXAMPLES["nano"], overrides, True, notices)
    if files.path is None and files.backend != "env" and "data_backend_config" not in overrides:
        where = "tried " + ", ".join(finding.SEARCHED) if files.backend != "cmd" else "command line"
        message = (
            "no configuration found to apply these options to" if overrides else "the command line holds no options"
        )
        raise ConfigError([*notices, Problem(message, where=where, fix=finding.first_step())])
    return Given(files, overrides, notices=notices)


def _example(example: Example, overrides: dict[str, Any], by_default: bool, notices: list[Problem]) -> Given:
    return Given(Files(example.folder / "config.json"), overrides, example, by_default, notices)
