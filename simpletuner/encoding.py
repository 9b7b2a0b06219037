"""Fills the caches of a configuration without training on them, by the phases of a run.

    python -m simpletuner.encoding --config <resolved configuration> [--only text|vae|weights]

It may be stopped at any moment: the items that are made stay, and the next start makes the rest.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from simpletuner import process
from simpletuner.check import Checked
from simpletuner.events import EventLog

if TYPE_CHECKING:
    from simpletuner.recipe import Run

Only = Literal["text", "vae", "weights"]
COMPLETE = {"text": "the text cache is", "vae": "the image caches are", "weights": "the quantised weights are"}


def encode(checked: Checked, events: EventLog, only: Only | None = None) -> str:
    """Makes what is missing; returns what to say of it. Loads no transformer but to quantise it."""
    run = process.new_run(checked, events)
    run.family = run.load_family()
    if only != "weights":
        _encode_library(run, only)
    if only in (None, "weights"):
        keep_weights(run, encoders=only is not None)
    return f"{COMPLETE.get(only or '', 'the caches are')} complete"


def _encode_library(run: Run, only: Only | None) -> None:
    library = run.scan()
    try:
        if only != "vae":
            run.encode_texts(library)
        if only != "text":
            run.encode_images(library)
    finally:
        library.close()


def keep_weights(run: Run, *, encoders: bool) -> None:
    """Quantises what the cache of quantised weights lacks: the denoiser, and with `encoders` what encodes text too."""
    from simpletuner.kernels.device import free  # needs torch, which has loaded by now

    family = run.family
    lacking = {part for part, packer in family.quantizers.items() if packer.root and not family.kept(part)}
    run.events.stage("init_quantise", "weights", "started")
    if lacking & set(run.record.encoders) and encoders:
        family.load_text_encoders(run.device)
        free()
    if lacking - set(run.record.encoders):
        family.load_denoiser(run.device)
        free()
    run.tell(family.notices)
    run.events.stage("init_quantise", "weights", "done")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m simpletuner.encoding", description="Fills the caches of a run.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--only", choices=get_args(Only))
    parser.add_argument("--json", action="store_true", help="events on stdout, one JSON object per line")
    arguments = parser.parse_args()
    job = partial(encode, only=arguments.only)
    sys.exit(process.run(arguments.config, json_events=arguments.json, job=job))


if __name__ == "__main__":
    main()
