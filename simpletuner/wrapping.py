"""Long lines cut at blanks for a terminal: a path, a command word or an option is never cut."""

from __future__ import annotations

import textwrap


def wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """Lines of at most `width` columns as far as words allow; `first` and `rest` stand in front. None for no words."""
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
