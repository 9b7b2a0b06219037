"""An HTML page that needs nothing but itself: style and script inside, no request leaves it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

HERE = Path(__file__).parent


def document(title: str, sections: Iterable[str], *, footer: str, script: bool = False) -> str:
    """The whole page. Sections and footer are HTML, the title is text; with `script`, comparisons can be moved."""
    style = (HERE / "style.css").read_text("utf-8")
    moving = f"<script>\n{(HERE / 'script.js').read_text('utf-8')}</script>\n" if script else ""
    return "\n".join([
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{escape(title)}: SimpleTuner</title>",
        f'<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n<body>\n<main>',
        *(section for section in sections if section),
        f"<footer>{footer}</footer>",
        f"</main>\n{moving}</body>\n</html>\n",
    ])  # fmt: skip
