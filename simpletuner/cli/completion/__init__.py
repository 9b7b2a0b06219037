"""`simpletuner completion bash|zsh|fish`: prints a script that knows every command, flag, option and choice.

The scripts are written from the commands and the schema by `python -m simpletuner.cli.surfaces`, and lie here as files:
a shell asks nobody while somebody types.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from simpletuner.cli import flags

FOLDER = Path(__file__).parent
SHELLS = ("bash", "zsh", "fish")


def path(shell: str) -> Path:
    """Where the script of a shell lies."""
    return FOLDER / f"simpletuner.{shell}"


@click.command(
    "completion",
    help="""Prints the script that completes commands, options and their choices in a shell.

\b
eval "$(simpletuner completion bash)"  in ~/.bashrc
eval "$(simpletuner completion zsh)"   in ~/.zshrc, after compinit
simpletuner completion fish | source   in ~/.config/fish/config.fish
""",
)
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    script = path(shell).read_text("utf-8")
    click.echo(json.dumps({"script": script}) if flags.current().json else script, nl=False)
