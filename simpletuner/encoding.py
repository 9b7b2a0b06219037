"""Fills the caches of a configuration without training on them, by the phases of a run.

    python -m simpletuner.encoding --config <resolved configuration> [--only text|vae]

It may be stopped at any moment: the items that are made stay, and the next start makes the rest.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Literal

from simpletuner import process
from simpletuner.check import Checked
from simpletuner.events import EventLog

Only = Literal["text", "vae"]


def encode(checked: Checked, events: EventLog, only: Only | None = None) -> str:
    """Makes what is missing; returns what to say of it. Loads no transformer."""
    run = process.new_run(checked, events)
    run.family = run.load_family()
    library = run.scan()
    try:
        if only != "vae":
            run.encode_texts(library)
        if only != "text":
            run.encode_images(library)
    finally:
        library.close()
    what = {"text": "text cache is", "vae": "image caches are"}.get(only or "", "caches are")
    return f"the {what} complete"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m simpletuner.encoding", description="Fills the caches of a run.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--only", choices=("text", "vae"))
    parser.add_argument("--json", action="store_true", help="events on stdout, one JSON object per line")
    arguments = parser.parse_args()
    job = partial(encode, only=arguments.only)
    sys.exit(process.run(arguments.config, json_events=arguments.json, job=job))


if __name__ == "__main__":
    main()
