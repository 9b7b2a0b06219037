"""Every failure of a command as findings and one exit code, told to people or as JSON."""

from __future__ import annotations

import errno
import json
import sys
import traceback
from pathlib import Path

import click

import simpletuner
from simpletuner.cli import problems
from simpletuner.cli.flags import Flags
from simpletuner.errors import Problem, SimpleTunerError
from simpletuner.registry import did_you_mean

DISK = {  # what the system says of a disk -> what to do
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space: the quota is used up",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EIO: "check the disk",
}


def tell(error: Exception, flags: Flags) -> int:
    """Says what went wrong; the exit code."""
    found, code = explain(error)
    if flags.debug:
        traceback.print_exception(error)
    if flags.json:
        print(json.dumps({"exit_code": code, "problems": [p.record() for p in found]}, ensure_ascii=False))
        return code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.ctx.get_help(), err=True)
        return code
    problems.show(found, quiet=flags.quiet)
    ending = "" if code == 1 else "Nothing was started."
    print(problems.summary(found, code, ending), file=sys.stderr)
    return code


def explain(error: Exception) -> tuple[list[Problem], int]:
    """(findings, exit code). What nobody foresaw is a bug: exit code 1."""
    if isinstance(error, SimpleTunerError):
        return error.problems, error.exit_code
    if isinstance(error, click.ClickException):
        found = _usage(error)
    elif isinstance(error, OSError) and error.errno in DISK:
        place = f"{error.filename}: " if error.filename else ""
        found = Problem(f"{place}{error.strerror}", "disk", fix=DISK[error.errno])
    else:
        fix = "please report it, with the output of: simpletuner env"
        found = Problem(f"{type(error).__name__}: {error}", "bug", where=_place(error), fix=fix)
    return [found], found.exit_code


def _usage(error: click.ClickException) -> Problem:
    """A command line that cannot be read."""
    message = " ".join(error.format_message().split()).rstrip(".")
    message = message[:1].lower() + message[1:]
    context = getattr(error, "ctx", None)
    fix = f"{context.command_path if context else 'simpletuner'} --help"
    if isinstance(error, click.NoSuchOption):
        message = f"no such option {error.option_name}"
        if error.possibilities:
            fix = f"{did_you_mean(error.option_name, error.possibilities)}   more: {fix}"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):  # click's message is the help itself
        message = "missing command"
    return Problem(message, where="command line", fix=fix)


def _place(error: Exception) -> str:
    """The last line of our own that the error passed."""
    home = str(Path(simpletuner.__file__).parent)
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(home)]
    return f"simpletuner{own[-1].filename[len(home) :]}:{own[-1].lineno}" if own else ""
