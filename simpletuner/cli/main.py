"""`simpletuner`: finds the command, runs it, and turns every failure into one message and one exit code."""

from __future__ import annotations

import importlib
import io
import os
import sys

import click

from simpletuner import __version__
from simpletuner.cli import flags, layout

COMMANDS = {  # name -> group in the help, one line
    "configure": ("Start", "answer a few questions and write the configuration"),
    "plan": ("Start", "show what a training would do, and start nothing"),
    "train": ("Start", "run a training, or continue one"),
    "validate": ("Check", "check configuration and dataset file; no network, no GPU"),
    "doctor": ("Check", "check this machine and say what to do"),
    "env": ("Check", "print a block for a report of a fault"),
    "dataset": ("Check", "look at the datasets: what is used, left out and seen"),
    "cache": ("Check", "look after the caches: status, build, verify, prune"),
    "checkpoint": ("Check", "list, verify, prune, pin or export the checkpoints of a run"),
    "generate": ("Use", "make pictures with a trained LoRA"),
    "export": ("Use", "write a LoRA file for another program"),
    "report": ("Use", "write the report page of a run"),
    "examples": ("Use", "list the packaged examples, or copy one"),
    "help": ("Use", "explain an option or a command"),
    "completion": ("Use", "print the completion script of a shell"),
    "version": ("Use", "version of the program and of its packages"),
}
GROUPS = ("Start", "Check", "Use")
SYNONYMS = {"data": "dataset"}

HELP = """Fine-tunes FLUX.1 text-to-image models: a config and a folder of pictures in, a LoRA file out.

\b
simpletuner train --example nano                  a real fine-tune in two minutes, no GPU
simpletuner configure                             a configuration for your own pictures
simpletuner generate --run RUN --prompt "a cat"   make a picture with what a run trained
"""
LAST_LINE = "simpletuner help lora_rank explains any option"


class Commands(click.Group):
    """Loads a command's file only when it is called, so that --help stays quick."""

    context_class = layout.Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        name = SYNONYMS.get(name, name)
        if name not in COMMANDS:
            return None
        command = importlib.import_module(f"simpletuner.cli.{name}").command
        flags.add(command)
        layout.apply(command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]):  # noqa: ANN201 - click's own type
        if self.get_command(ctx, args[0]) is None:
            from simpletuner.cli.absent import no_command

            raise no_command(args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title in GROUPS:
            with formatter.section(title):
                formatter.write_dl([(name, line) for name, (group, line) in COMMANDS.items() if group == title])
        formatter.write("\n" + "\n".join(layout.hanging(LAST_LINE, formatter.width, 0)) + "\n")


@click.group(
    cls=Commands, help=HELP, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, "--version", message="%(version)s")
@click.pass_context
def program(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


flags.add(program)


class _Pipe(io.FileIO):
    """A file whose reader may go, as with `| head`: what comes after is dropped, and the command ends as it would."""

    def write(self, data) -> int:  # noqa: ANN001 - a buffer, as FileIO declares it
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def _open_stdout() -> None:
    """Makes stdout safe to write to, also where it is closed."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - open for the life of the process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    elif (stdout := sys.__stdout__) and sys.stdout is stdout and not stdout.isatty():
        raw = _Pipe(stdout.fileno(), "w", closefd=False)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), stdout.encoding, stdout.errors)


def main() -> None:
    """The console script."""
    # Before torch is loaded, here or in a trainer: its threads spin while they wait, and on a CPU that does something
    # else as well a step of the nano example then takes 50 times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    _open_stdout()
    asked = flags.read(sys.argv[1:], os.environ)
    try:
        code = program.main(prog_name="simpletuner", standalone_mode=False, obj=asked)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except Exception as error:  # noqa: BLE001 - the last line of defence: everything gets its message and exit code
        from simpletuner.cli import failures

        code = failures.tell(error, asked)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
