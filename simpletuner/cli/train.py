"""`simpletuner train`: checks everything in a second, then starts the trainer."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import click

from simpletuner import launch, machine
from simpletuner.check import check, on_machine, with_seed
from simpletuner.cli import plan, problems, sources
from simpletuner.config import OPTIONS, command_line
from simpletuner.errors import HardwareError, Problem, raise_errors
from simpletuner.memory.options import Memory
from simpletuner.models import families
from simpletuner.surfaces import help_text
from simpletuner.training.lock import Lock
from simpletuner.training.options import Training

BUILT_IN = (
    'No configuration in this folder: running the built-in example "nano" (about two minutes, no GPU, no network). '
    "Your own: simpletuner configure"
)
MORE_RAM = "close other programs, or train on a machine with more RAM"
STREAMED = ("auto", "accelerator")  # ways of quantising that leave RAM alone


class TrainCommand(click.Command):
    """Shows the options of the schema behind those of the command itself."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        chosen = command_line(sys.argv[2:])[0]
        family = families()[str(OPTIONS["model_family"].default)]
        flavour = family.flavours.get(str(chosen.get("model_flavour", OPTIONS["model_flavour"].default)))
        defaults = flavour.defaults if flavour else {}
        formatter.write(help_text(OPTIONS.values(), "help_all" in chosen, defaults) + "\n")


def _show_all(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        click.echo(ctx.get_help())
        ctx.exit()


@click.command(
    "train",
    cls=TrainCommand,
    context_settings=sources.ANY_OPTION,
    help="""Runs a training, or continues one.

\b
  simpletuner train                               config.json here or in config/, else the example nano
  simpletuner train --env portraits               config/portraits/config.json
  simpletuner train learning_rate=2e-4 --seed 7   any option may be given here
""",
)
@plan.RESUME
@click.option("--dry-run", "--dry_run", "dry_run", is_flag=True, help="Show the plan and the command; start nothing.")
@click.option(
    "--help-all",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_all,
    help="This text with all expert options.",
)
@sources.shared
def command(asked: sources.Asked, as_json: bool, resume: str | None, dry_run: bool) -> None:
    if dry_run:
        sys.exit(plan.show(asked, as_json, resume, launching=True))
    given = sources.find(asked)
    overrides = given.overrides | ({"resume_from_checkpoint": resume} if resume else {})
    if given.by_default:
        print(BUILT_IN, file=sys.stderr)
    checked = check(given.files, overrides)
    exports = checked.config.exports
    checked = with_seed(on_machine(checked, machine.look({**os.environ, **exports})))
    found = [*given.notices, *checked.problems]
    raise_errors(found)
    problems.show(found)
    training = checked.config[Training]
    resolved = _prepare(training.output_dir)
    checked.config.write(resolved)
    code = launch.run(launch.command(resolved, json_events=as_json), training.stop_timeout, exports)
    if code == -signal.SIGKILL:
        memory = checked.config[Memory]
        packs_in_ram = memory.quantised and memory.quantize_via not in STREAMED
        advice = f"quantize_via={' or '.join(STREAMED)}, else base_model_precision=bf16; or {MORE_RAM}"
        raise HardwareError(launch.KILLED, fix=advice if packs_in_ram else MORE_RAM)
    sys.exit(code)


def _prepare(output_dir: Path) -> Path:
    """Where the resolved configuration goes; refuses a folder that another run holds."""
    with Lock(output_dir) as lock:  # held by another run: this says by whom
        if lock.taken_over:
            problems.show([Problem(lock.taken_over, severity="warning")])
    return output_dir / launch.RESOLVED
