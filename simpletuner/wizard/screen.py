"""Asking on a terminal: plain lines that any terminal and any screen reader can follow.

Where the terminal has arrow keys they move through the choices on one line, which is all that is ever redrawn.
"""

from __future__ import annotations

import glob
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from simpletuner.wrapping import wrapped

NARROWEST, WIDEST = 40, 100  # columns
WIDE_ENOUGH = 60  # for a choice and its meaning on one line
UP, DOWN = ("\x1b[A", "\x1bOA"), ("\x1b[B", "\x1bOB")
ENTER, ERASE, END, ESCAPE = "\r\n", "\x7f\b", "\x04", "\x1b"
COLOURS = {"+": "32", "-": "31", "bold": "1"}


class Screen:
    """The terminal of this process."""

    def __init__(self, environ: Mapping[str, str] = os.environ):
        size = shutil.get_terminal_size((80, 24))
        self.width = max(NARROWEST, min(WIDEST, size.columns))
        self.rows = size.lines
        plain = environ.get("TERM", "dumb") == "dumb" or not sys.stdout.isatty()
        self.arrows = not plain and _has_termios() and sys.stdin.isatty()
        self.coloured = not plain and "NO_COLOR" not in environ
        if not plain:
            _edit_lines()

    # ---- telling

    def say(self, text: str = "", indent: int = 0, colour: str = "") -> None:
        """A paragraph, wrapped; commands and paths are never cut."""
        for line in indented(text, self.width, indent):
            print(self._dyed(line, colour))

    def raw(self, line: str) -> None:
        """A line of a file, as it is; its first character may give it a colour."""
        print(self._dyed(line, line[:1]))

    def choices(self, rows: Sequence[tuple[str, str]], marked: int) -> bool:
        """A numbered list of (name, meaning). Returns False if the meanings are left out, for want of room."""
        lines = self._listed(rows, marked)
        complete = len(lines) <= max(len(rows), self.rows - 5)
        for line in lines if complete else self._listed([(name, "") for name, _ in rows], marked):
            print(line)
        return complete

    def _listed(self, rows: Sequence[tuple[str, str]], marked: int) -> list[str]:
        left = max(len(name) for name, _ in rows) + 7
        lines: list[str] = []
        for number, (name, meaning) in enumerate(rows):
            head = f"{'>' if number == marked else ' '} {number + 1}  {name}"
            if not meaning:
                lines.append(head)
            elif self.width >= WIDE_ENOUGH:
                first, *rest = textwrap.wrap(meaning, self.width - left)
                lines += [head.ljust(left) + first, *(" " * left + line for line in rest)]
            else:
                lines += [head, *indented(meaning, self.width, 5)]
        return lines

    def _dyed(self, line: str, colour: str) -> str:
        code = COLOURS.get(colour)
        return f"\x1b[{code}m{line}\x1b[0m" if code and self.coloured and line else line

    # ---- asking

    def line(self, prompt: str, path: bool = False) -> str:
        """One line, without its end. KeyboardInterrupt for Ctrl-C, EOFError if nobody is there any more."""
        with _completing(path):
            return input(prompt).strip()

    def pick(self, prompt: str, names: Sequence[str], start: int, numbered: bool = True) -> str:
        """A name, or what was typed instead: a number, a part of a name, "?" or "<"."""
        labels = [f"{number} {name}" if numbered else name for number, name in enumerate(names, 1)]
        if not self.arrows:
            return self.line(f"{prompt} [{labels[start]}]: ") or names[start]
        with _keys() as keys:
            return self._picked(prompt, names, labels, start, keys)

    def _picked(
        self, prompt: str, names: Sequence[str], labels: Sequence[str], chosen: int, keys: Iterator[str]
    ) -> str:
        typed = ""
        while True:
            shown = typed or labels[chosen]
            sys.stdout.write(f"\r\x1b[K{prompt}: {shown}"[: self.width + 3])
            sys.stdout.flush()
            key = next(keys)
            if key in ENTER:
                print()
                return typed or names[chosen]
            if key in UP or key in DOWN:
                typed, chosen = "", (chosen + (1 if key in DOWN else -1)) % len(names)
            elif key in ERASE:
                typed = typed[:-1]
            elif key == END:
                raise EOFError
            elif key.isprintable():
                typed += key
            if typed in ("?", "<"):
                print()
                return typed


def indented(text: str, width: int, indent: int = 0) -> list[str]:
    """The paragraph, moved in; an empty one is an empty line."""
    return wrapped(text, width, " " * indent, " " * indent) or [""]


def _has_termios() -> bool:
    try:
        import termios  # noqa: F401 - not on Windows
    except ImportError:
        return False
    return True


def _edit_lines() -> None:
    """Lets input() edit its line and remember earlier ones, where the system can."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return


@contextmanager
def _completing(path: bool) -> Iterator[None]:
    """Tab completes paths."""
    if not path or "readline" not in sys.modules:
        yield
        return
    import readline

    readline.set_completer_delims("\n")
    readline.set_completer(_complete)
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        readline.set_completer(None)


def _complete(begun: str, number: int) -> str | None:
    found = sorted(glob.glob(glob.escape(os.path.expanduser(begun)) + "*"))
    return found[number] + os.sep * os.path.isdir(found[number]) if number < len(found) else None


@contextmanager
def _keys() -> Iterator[Iterator[str]]:
    """The keys as they are pressed; Ctrl-C still interrupts."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor, termios.TCSADRAIN)
        yield _split(iter(lambda: os.read(descriptor, 64).decode("utf-8", "ignore"), None))
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _split(chunks: Iterable[str]) -> Iterator[str]:
    """Single keys; an arrow is a sequence of three characters."""
    for chunk in chunks:
        if not chunk:
            yield END
        while chunk:
            length = 3 if chunk[:2] in (f"{ESCAPE}[", f"{ESCAPE}O") else 1
            yield chunk[:length]
            chunk = chunk[length:]
