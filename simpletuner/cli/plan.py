"""`simpletuner plan`: everything that can be known about a run before it starts. No weights, no torch."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import click

from simpletuner.cli import layout, problems, sources
from simpletuner.errors import exit_code

RESUME = click.option(
    "--resume", metavar="latest|none|NAME|PATH", help="Which checkpoint to go on from; latest by default."
)


@click.command(
    "plan",
    context_settings=sources.ANY_OPTION,
    help="""Shows what a training would do: images, steps, caches, memory, disk, time. Starts nothing.

\b
simpletuner plan                      of the configuration that is found here
simpletuner plan train_batch_size=4   of the same with another batch size
simpletuner plan --json               as data; exit code 0 only if the run could start
""",
)
@RESUME
@sources.shared
def command(asked: sources.Asked, as_json: bool, resume: str | None) -> None:
    sys.exit(show(asked, as_json, resume))


def show(asked: sources.Asked, as_json: bool, resume: str | None, launching: bool = False) -> int:
    """Prints the plan, with `launching` also the command that would start the trainer; returns the exit code."""
    from simpletuner import launch, machine, plan
    from simpletuner.check import check, with_seed
    from simpletuner.plan import words
    from simpletuner.training.options import Training

    given = sources.find(asked)
    overrides = given.overrides | ({"resume_from_checkpoint": resume} if resume else {})
    checked = with_seed(check(given.files, overrides))
    made = plan.make(checked, machine.look({**os.environ, **checked.config.exports}))
    found = [*given.notices, *made.problems]
    code, argv = exit_code(found), []
    if launching and made.can_start:
        argv = launch.command(checked.config[Training].output_dir / launch.RESOLVED)
    if as_json:
        record: dict[str, Any] = made.record() | ({"command": argv} if argv else {})
        click.echo(json.dumps(record | {"problems": [p.record() for p in found]}, ensure_ascii=False, indent=2))
        return code
    click.echo(words.text(made, layout.columns(), _again(sys.argv[2:])))
    if argv:
        click.echo(f"starts: {shlex.join(argv)}")
    problems.show(found)
    if code:
        print(problems.summary(found, code), file=sys.stderr)
    return code


def _again(said: Sequence[str]) -> str:
    """The command that starts what was planned: the same words, but those about how to plan."""
    own = ("--json", "--debug", "-q", "--quiet", "--no-input", "--dry-run", "--dry_run")
    return shlex.join(["simpletuner", "train", *(word for word in said if word not in own)])
