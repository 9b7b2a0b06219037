"""`simpletuner version`."""

from __future__ import annotations

import json
import platform
from importlib import metadata

import click

from simpletuner import __version__

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "pillow",
)


@click.command("version", help="The program's version; with --json also those of Python and the packages it stands on.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, with packages.")
def command(as_json: bool) -> None:
    if not as_json:
        click.echo(__version__)
        return
    installed = {
        d.metadata["Name"].lower().replace("-", "_"): d.version for d in metadata.distributions() if d.metadata["Name"]
    }
    packages = {name: installed.get(name) for name in PACKAGES}
    click.echo(
        json.dumps({"simpletuner": __version__, "python": platform.python_version(), "packages": packages}, indent=2)
    )
