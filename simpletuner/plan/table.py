"""Rows of a table in lines: numbers to the right, texts to the left, and a last column that may be long."""

from __future__ import annotations

from collections.abc import Sequence

from simpletuner import wrapping

GAP = 2
ROOM = 20  # the least that a last column needs
JOINED = "\N{NO-BREAK SPACE}"  # between words that stay on one line


def columns(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The first row is the head. A table that is too wide has its rows one below the other, each figure with its name.

    The last column is continued below itself.
    """
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]) - 1)]
    left = sum(widths) + GAP * (len(widths) - 1) + 3
    if left + (ROOM if any(row[-1] for row in rows) else -3) > width:
        return _stacked(rows, width)
    lines = []
    for first, *middle, last in rows:
        cells = [f"{first:<{widths[0]}}", *(f"{cell:>{size}}" for cell, size in zip(middle, widths[1:], strict=True))]
        found = wrapped(last, width - left) or [""]
        lines.append(f"{(' ' * GAP).join(cells)}   {found[0]}".rstrip())
        lines += [" " * left + more for more in found[1:]]
    return lines


def _stacked(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    names, lines = rows[0][1:], [rows[0][0]]
    for first, *cells in rows[1:]:
        told = [f"{name}{JOINED}{cell}" for name, cell in zip(names, cells, strict=True) if name and cell]
        lines += wrapped(f"{first}: {', '.join(told)}", width, "  ", "    ")
    return lines


def wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """Lines of at most `width` columns as far as words allow; `first` and `rest` stand in front."""
    return [line.replace(JOINED, " ") for line in wrapping.wrapped(text, width, first, rest)]
