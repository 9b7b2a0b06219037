"""Prints findings: what, where, how to fix it; the last line counts them and gives the exit code."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence

from simpletuner.cli import flags
from simpletuner.errors import Problem

COLOURS = {"error": "31", "warning": "33", "notice": "36"}


def _coloured() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def show(problems: Iterable[Problem], quiet: bool | None = None) -> None:
    """All findings on stderr: errors first, then warnings and, if not `quiet` (by default as -q says), notices."""
    quiet = flags.current().quiet if quiet is None else quiet
    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    order = ["error", "warning", "notice"]
    told = [problem for problem in dict.fromkeys(problems) if not (quiet and problem.severity == "notice")]
    for problem in sorted(told, key=lambda p: order.index(p.severity)):
        first, *rest = problem.lines(width)
        if _coloured():
            first = f"\x1b[{COLOURS[problem.severity]}m{first}\x1b[0m"
        print("\n".join([first, *rest]), file=sys.stderr)


def summary(problems: Sequence[Problem], exit_code: int, ending: str = "Nothing was started.") -> str:
    counts = [(n, word) for word in ("error", "warning") if (n := sum(p.severity == word for p in problems))]
    text = ", ".join(f"{n} {word}" + "s" * (n != 1) for n, word in counts)
    return f"{text}. {ending} (exit {exit_code})" if ending else f"{text} (exit {exit_code})"


def exit_code(problems: Iterable[Problem]) -> int:
    return min((p.exit_code for p in problems if p.severity == "error"), default=0)
