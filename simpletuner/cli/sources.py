"""Which configuration a command was given: --config, --env, --example, overrides, or what lies in this folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from simpletuner import config
from simpletuner.errors import ConfigError, raise_errors
from simpletuner.examples import EXAMPLES, Example
from simpletuner.registry import did_you_mean


@dataclass(frozen=True)
class Given:
    path: Path | None
    overrides: dict[str, Any]
    example: Example | None = None
    by_default: bool = False  # the example runs because nothing else was found


def shared(function: Any) -> Any:
    """The options that every command with a configuration has."""
    for decorator in reversed(
        [
            click.option(
                "--config",
                "config_path",
                metavar="PATH",
                help="Configuration file, or a folder that holds config.json.",
            ),
            click.option("--env", metavar="NAME", help="Environment: the folder config/NAME."),
            click.option("-e", "--example", metavar="NAME", help="A packaged example."),
            click.option("--json", "as_json", is_flag=True, help="Machine-readable output on stdout."),
            click.option("--debug", is_flag=True, help="Show tracebacks."),
            click.argument("words", nargs=-1, type=click.UNPROCESSED),
        ]
    ):
        function = decorator(function)
    return function


def find(config_path: str | None, env: str | None, example: str | None, words: Sequence[str]) -> Given:
    """Raises ConfigError if something was asked for and is not there."""
    overrides, problems = config.command_line(words)
    raise_errors(problems)
    env = env or overrides.pop("env", None)
    example = example or overrides.pop("example", None)
    if example:
        if example not in EXAMPLES:
            raise ConfigError(f'no example "{example}"', fix=did_you_mean(example, EXAMPLES))
        return _example(EXAMPLES[example], overrides, False)
    path, problems = config.find(config_path, env, os.environ)
    raise_errors(problems)
    if path is None and not overrides:
        return _example(EXAMPLES["nano"], overrides, True)
    if path is None and "data_backend_config" not in overrides:
        fix = (
            "cp config/config.json.example config/config.json"
            if Path("config/config.json.example").exists()
            else "give --config PATH"
        )
        raise ConfigError(
            "no configuration found to apply these options to", where="tried " + ", ".join(config.SEARCHED), fix=fix
        )
    return Given(path, overrides)


def _example(example: Example, overrides: dict[str, Any], by_default: bool) -> Given:
    return Given(example.folder / "config.json", overrides, example, by_default)
