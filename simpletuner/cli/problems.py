"""Prints findings: what, where, how to fix it; the last line counts them and gives the exit code."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from simpletuner.cli import flags, layout
from simpletuner.errors import Problem

COMMAND = re.compile(r"\bsimpletuner .*")
COLOURS = {"error": "31", "warning": "33", "notice": "36"}


def _coloured() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def show(problems: Iterable[Problem], quiet: bool | None = None) -> None:
    """All findings on stderr: errors first, then warnings and, if not `quiet` (by default as -q says), notices."""
    quiet = flags.current().quiet if quiet is None else quiet
    order = ["error", "warning", "notice"]
    told = [problem for problem in dict.fromkeys(problems) if not (quiet and problem.severity == "notice")]
    for problem in sorted(told, key=lambda p: order.index(p.severity)):
        first, *rest = lines(problem, layout.columns())
        if _coloured():
            first = f"\x1b[{COLOURS[problem.severity]}m{first}\x1b[0m"
        print("\n".join([first, *rest]), file=sys.stderr)


def lines(problem: Problem, width: int) -> list[str]:
    """The finding, cut at blanks where it is too long. In a file or a pipe it stays whole, to be searched."""
    told = problem.lines(width)
    if not (sys.stderr.isatty() or "COLUMNS" in os.environ):
        return told
    found: list[str] = []
    for line, below in zip_longest(told, told[1:], fillvalue=""):
        whole = len(line) <= width or below.strip() == "^"  # a caret below points into this line
        found += [line] if whole else _cut(line, width)
    return found


def _cut(line: str, width: int) -> list[str]:
    """A command is not cut if it finds room on a line of its own: it is there to be pasted."""
    joined = COMMAND.sub(lambda found: found[0].replace(" ", "\0") if len(found[0]) <= width - 6 else found[0], line)
    cut = layout.hanging(joined.strip(), width, 2 if line.startswith("  ") else 0)
    return [part.replace("\0", " ") for part in cut]


def summary(problems: Sequence[Problem], exit_code: int, ending: str = "Nothing was started.") -> str:
    counts = [(n, word) for word in ("error", "warning") if (n := sum(p.severity == word for p in problems))]
    text = ", ".join(f"{n} {word}" + "s" * (n != 1) for n, word in counts)
    return f"{text}. {ending} (exit {exit_code})" if ending else f"{text} (exit {exit_code})"
