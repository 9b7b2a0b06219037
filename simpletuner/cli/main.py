"""`simpletuner`: finds the command, runs it, and turns every failure into one message and one exit code."""

from __future__ import annotations

import importlib
import os
import sys

import click

from simpletuner import __version__
from simpletuner.errors import SimpleTunerError

COMMANDS = {  # name -> group in the help, one line
    "train": ("Start", "run a training, or continue one"),
    "validate": ("Check", "check configuration and dataset file; no network, no GPU"),
    "generate": ("Use", "make pictures with a trained LoRA"),
    "report": ("Use", "write the report page of a run"),
    "examples": ("Use", "list the packaged examples, or copy one"),
    "help": ("Use", "explain an option"),
    "version": ("Use", "version of the program and of its packages"),
}

HELP = """Fine-tunes FLUX.1 text-to-image models: a config and a folder of pictures in, a LoRA file out.

\b
  simpletuner train --example nano                  a real fine-tune in two minutes, no GPU
  simpletuner validate                              check config/config.json and its datasets
  simpletuner generate --run RUN --prompt "a cat"   make a picture with what a run trained
"""


class Commands(click.Group):
    """Loads a command's file only when it is called, so that --help stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"simpletuner.cli.{name}").command

    def resolve_command(self, ctx: click.Context, args: list[str]):  # noqa: ANN201 - click's own type
        if args and args[0] not in COMMANDS:
            from simpletuner.registry import did_you_mean

            raise click.UsageError(f'no command "{args[0]}": {did_you_mean(args[0], COMMANDS)}', ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title in ("Start", "Check", "Use"):
            with formatter.section(title):
                formatter.write_dl([(name, line) for name, (group, line) in COMMANDS.items() if group == title])
        formatter.write("\nsimpletuner help lora_rank explains any option\n")


@click.group(
    cls=Commands, help=HELP, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, "--version", message="%(version)s")
@click.pass_context
def program(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """The console script."""
    # Before torch is loaded, here or in a trainer: its threads spin while they wait, and on a CPU that does something
    # else as well a step of the nano example then takes 50 times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        code = program.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except SimpleTunerError as error:
        code = _report(error)
    except BrokenPipeError:  # the reader has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


def _report(error: SimpleTunerError) -> int:
    from simpletuner.cli import problems

    if "--debug" in sys.argv or os.environ.get("SIMPLETUNER_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    problems.show(error.problems)
    print(problems.summary(error.problems, error.exit_code), file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    main()
