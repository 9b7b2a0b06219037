"""The examples that come with the package: where they are, and how config files name them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PREFIX = "config/examples/"
_PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Example:
    name: str
    folder: Path
    flavour: str
    memory: str
    time: str
    help: str


EXAMPLES = {
    "nano": Example(
        "nano",
        _PACKAGE / "nano",
        "nano",
        "no GPU",
        "1-2 min",
        "teaches the bundled tiny Flux the look of a print in three inks",
    )
}


def resolve(text: str) -> str:
    """A path as people write it, with `config/examples/NAME/...` led to the packaged example."""
    if not text.startswith(PREFIX):
        return text
    name, _, rest = text[len(PREFIX) :].partition("/")
    return str(EXAMPLES[name].folder / rest) if name in EXAMPLES else text
