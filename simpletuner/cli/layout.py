"""How wide help is, and how an example and its meaning share a line: 40 to 120 columns, as the terminal has."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable
from types import TracebackType

import click

from simpletuner.wrapping import wrapped

NARROWEST, WIDEST = 40, 120
GAP = 2  # columns between two cells
LEFT = 30  # a first cell longer than this gets a line of its own
ROOM = 24  # the least that a meaning needs beside its name


def columns() -> int:
    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size((100, 24)).columns))


def pairs(rows: Iterable[tuple[str, str]], width: int, indent: int = 2, widest: int = LEFT) -> list[str]:
    """Lines of (name, meaning): side by side where both find room, else the meaning below its name."""
    rows = list(rows)
    fitting = [len(name) for name, _ in rows if len(name) <= min(widest, width - indent - GAP - ROOM)]
    left = indent + max(fitting, default=0) + GAP
    lines = []
    for name, meaning in rows:
        rest = wrapped(meaning, width - left)
        if rest and indent + len(name) + GAP <= left:
            lines.append(f"{' ' * indent}{name}".ljust(left) + rest.pop(0))
        else:
            lines += hanging(name, width, indent)
        lines += [" " * left + line for line in rest]
    return lines


def hanging(text: str, width: int, indent: int) -> list[str]:
    """A line that is cut at blanks where it is too long, its rest further in."""
    return wrapped(text, width, " " * indent, " " * (indent + 4)) or [""]


class Formatter(click.HelpFormatter):
    """Click's, but narrow terminals get narrow lines, and examples keep their two columns."""

    def __init__(self, indent_increment: int = 2, width: int | None = None, max_width: int | None = None):
        super().__init__(indent_increment, width or columns(), max_width)

    def write_text(self, text: str) -> None:
        """Paragraphs. One that begins with \\b has a line for each example: a command, blanks, its meaning."""
        indent = self.current_indent
        for number, paragraph in enumerate(re.split(r"\n\s*\n", text)):
            if number:
                self.write("\n")
            if paragraph.startswith("\b"):
                rows = [_cells(line) for line in paragraph.splitlines()[1:]]
                lines = pairs(rows, self.width, indent, widest=self.width)
            else:
                words = " ".join(paragraph.split())
                lines = textwrap.wrap(words, self.width, initial_indent=" " * indent, subsequent_indent=" " * indent)
            self.write("\n".join(lines) + "\n")

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = LEFT, col_spacing: int = GAP) -> None:
        self.write("\n".join(pairs(rows, self.width, self.current_indent, col_max)) + "\n")


def _cells(line: str) -> tuple[str, str]:
    command, _, meaning = line.strip().partition("  ")
    return command, meaning.strip()


class Context(click.Context):
    """Click's, with our help. A command line that cannot be read leaves it with the command that was being read."""

    formatter_class = Formatter

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if isinstance(error, click.UsageError) and error.ctx is None:
            error.ctx = self
        return super().__exit__(kind, error, trace)


def apply(command: click.Command) -> None:
    """Lets a command, and those below it, lay out its help like this."""
    command.context_class = Context
    for below in getattr(command, "commands", {}).values():
        apply(below)
