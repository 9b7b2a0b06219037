"""`simpletuner env`: a block for a report of a fault: versions, machine, paths. It holds no secret, no home folder."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from simpletuner import __version__, config, machine, software
from simpletuner.cli import layout, sources
from simpletuner.errors import SimpleTunerError
from simpletuner.models.places import hub_cache

GIB = 2**30
# Variables that change what the program, or what it stands on, does.
TOLD = re.compile(
    r"(SIMPLETUNER|HF|HUGGINGFACE|TRANSFORMERS|DIFFUSERS|CUDA|NVIDIA|NCCL|ROCR|HIP|HSA|PYTORCH|TORCH|TORCHINDUCTOR|TRITON|"
    r"ACCELERATE|OMP|MKL|CONFIG)_\w+|ENV|TRAINER_EXTRA_ARGS|VIRTUAL_ENV|VENV_PATH"
)
SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|COOKIE|WEBHOOK", re.IGNORECASE)
# In values: a login in an address, what follows the host of a webhook, and tokens by their usual beginnings.
SECRETS = (
    (re.compile(r"(\w+://)[^/@\s]+@"), r"\1***@"),
    (re.compile(r"(https?://[^/\s]+/)\S*webhook\S*"), r"\1***"),
    (re.compile(r"\b(hf_|sk-|ghp_|github_pat_|AKIA|xox[a-z]-)[\w-]{6,}"), r"\1***"),
    (re.compile(r"(?i)((?:token|key|secret|password)\S*?[=\s:]+)[^\s,]+"), r"\1***"),
)


@click.command("env", help="Prints a block to paste into a report of a fault; tokens and the home folder are left out.")
@sources.shared
def command(asked: sources.Asked, as_json: bool) -> None:
    told = {name: clean(text) for name, text in rows(asked, os.environ)}
    if as_json:
        click.echo(json.dumps(told, ensure_ascii=False, indent=2))
        return
    click.echo("\n".join(["```text", *layout.pairs(told.items(), layout.columns(), 0), "```"]))


def rows(asked: sources.Asked, environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """(name, text) of everything that is told, secrets and all: `clean` is for the texts."""
    here = machine.look(environ)
    build = software.torch_build()
    packages = software.versions([*software.PACKAGES, *software.OPTIONAL])
    gpus = [
        (f"GPU {gpu.index}", f"{gpu.name}, {_gib(gpu.total_bytes)}, {_gib(gpu.free_bytes)} free, "
         f"compute {gpu.capability[0]}.{gpu.capability[1]}, driver {gpu.driver}")
        for gpu in here.gpus
    ]  # fmt: skip
    return [
        ("simpletuner", f"{__version__} in {Path(__file__).parent.parent}"),
        ("python", f"{platform.python_version()} in {sys.prefix}"),
        ("system", platform.platform()),
        ("torch", f"{build.version} for {build.devices}" if build else "not installed"),
        ("packages", ", ".join(f"{name} {found}" for name, found in packages.items() if found)),
        *(gpus or [("GPU", "none that the driver shows")]),
        ("RAM", f"{_gib(here.ram_bytes)}, {_gib(here.ram_free_bytes)} free; {here.cores} cores"),
        *_paths(asked),
        *((name, _value(name, value)) for name, value in sorted(environ.items()) if TOLD.fullmatch(name)),
    ]


def _paths(asked: sources.Asked) -> list[tuple[str, str]]:
    """The files and folders in use."""
    found: list[tuple[str, Any]] = [("folder", Path.cwd())]
    try:
        given = sources.find(asked)
        loaded, _ = config.load(given.files, given.overrides)
    except SimpleTunerError as error:
        found.append(("configuration", f"none: {error}"))
    else:
        found.append(("configuration", f"{given.path or 'command line'}{' (by default)' * given.by_default}"))
        values = loaded.values()
        found += [
            (key, values[key]) for key, option in config.OPTIONS.items() if option.kind == "path" and values.get(key)
        ]
    found += [("hub cache", hub_cache(None)), ("state", machine.state_dir())]
    return [(name, str(place)) for name, place in found]


def clean(text: str) -> str:
    """The text without what nobody else should read."""
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    for home in {str(Path.home()), os.path.realpath(Path.home())} - {"/"}:
        text = re.sub(re.escape(home) + r"(?=/|\s|$|[,;:])", "~", text)
    return text


def _value(name: str, value: str) -> str:
    return "(set)" if SECRET_NAME.search(name) else value


def _gib(number: int) -> str:
    return f"{number / GIB:.1f} GiB"
