"""`simpletuner export`: a LoRA file for another program. All mistakes are told before torch loads."""

from __future__ import annotations

import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from simpletuner.adapters.formats import FORMATS
from simpletuner.adapters.formats.source import Source, look
from simpletuner.cli import flags, problems
from simpletuner.errors import ConfigError, Problem, raise_errors
from simpletuner.training import manifest

DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
SUFFIX = ".safetensors"
HIGHEST_RANK = 256  # as lora_rank
TOLD = 3  # layers named in a message

OPTIONS = (
    click.option("--format", "dialect", type=click.Choice(list(FORMATS)), required=True, help="Whose layout to write."),
    click.option(
        "--output", type=click.Path(path_type=Path), metavar="PATH",
        help="The new file, or a folder for it. Nothing is ever overwritten.",
    ),
    click.option("--dtype", type=click.Choice(list(DTYPES)), help="Precision; that of the file unless given."),
    click.option(
        "--metadata", type=click.Choice(["standard", "minimal", "none"]), default="standard", show_default=True,
        help="How much the new file says of the training.",
    ),
    click.option("--as", "kind", type=click.Choice(["lora"]), help="With --rank: a LoRA of that rank, the nearest."),
    click.option("--rank", type=click.IntRange(1, HIGHEST_RANK), metavar="N", help="Rank of --as lora."),
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What was asked for, as it was written."""

    dialect: str
    output: Path | None
    dtype: str | None
    metadata: str
    kind: str | None
    rank: int | None


def described(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of an export; `function` gets them as `wanted`."""

    @functools.wraps(function)
    def inner(
        dialect: str, output: Path | None, dtype: str | None, metadata: str, kind: str | None, rank: int | None,
        **rest: Any,
    ) -> None:  # fmt: skip
        function(wanted=Wanted(dialect, output, dtype, metadata, kind, rank), **rest)

    for option in reversed(OPTIONS):
        inner = option(inner)
    return inner


@click.command(
    "export",
    help="""Writes a LoRA file in the layout of another program, beside it or as PATH, and checks the result.

\b
  simpletuner export cats.safetensors --format kohya
  simpletuner export cats.safetensors --format comfyui --dtype bf16 --output for-comfy.safetensors
  simpletuner export cats.safetensors --format diffusers --as lora --rank 8
""",
)
@click.argument("file", type=click.Path(path_type=Path))
@described
def command(file: Path, wanted: Wanted) -> None:
    in_checkpoint = (file.parent / manifest.FILE).is_file()  # which its run may delete
    home = file.parent.parent if in_checkpoint else file.parent
    write(file, wanted, home / f"{file.stem}-{wanted.dialect}{SUFFIX}")


def write(file: Path, wanted: Wanted, default: Path) -> None:
    """Checks, writes and tells. default: the path unless one was given; if it is taken, one that counts on from it."""
    source, found = _checked(file, wanted, default)
    problems.show(found)
    from simpletuner.adapters.convert import Order, Written, convert  # torch loads here

    dtype = DTYPES[wanted.dtype] if wanted.dtype else source.dtype
    order = Order(FORMATS[wanted.dialect], dtype, wanted.metadata, wanted.rank)
    fixed = wanted.output is not None and not wanted.output.is_dir()
    try:
        done: Written = convert(source, order, [_place(wanted, default)] if fixed else _free(_place(wanted, default)))
    except FileExistsError as error:  # since the check, which comes first
        raise ConfigError([_taken(_place(wanted, default))]) from error
    if flags.current().json:
        record = {"file": str(done.path), "format": wanted.dialect, **asdict(done), "path": str(done.path)}
        click.echo(json.dumps(record, ensure_ascii=False, indent=2))
        return
    click.echo(done.path)
    near = f"each changes by the same to {done.largest_difference:.1g}"
    print(f"{done.num_layers} layers, rank {done.rank}, {done.dtype}: {near}", file=sys.stderr)
    if done.kept:
        for line in _kept(done.kept):
            print(line, file=sys.stderr)


def _checked(file: Path, wanted: Wanted, default: Path) -> tuple[Source, list[Problem]]:
    """The file, and notices. One error with every mistake."""
    found: list[Problem] = []
    source = None
    if (wanted.kind is None) != (wanted.rank is None):
        one, other = ("--rank N", "--as lora") if wanted.kind else ("--as lora", "--rank N")
        found.append(Problem(f"{other} needs {one}", fix=f"add {one}, or drop {other}"))
    try:
        source, notices = look(file)
        found += notices
    except ConfigError as error:
        found += error.problems
    path = _place(wanted, default)
    if wanted.output is not None and not wanted.output.is_dir():
        if path.suffix != SUFFIX:
            fix = f"name it {path.with_suffix(SUFFIX).name}"
            found.append(Problem(f"--output: {path} does not end in {SUFFIX}", fix=fix))
        elif path.exists():
            found.append(_taken(path))
    above = next((folder for folder in path.parents if folder.exists()), None)
    if above is not None and not above.is_dir():
        found.append(Problem(f"--output: {above} is a file, not a folder", fix="choose another place"))
    raise_errors(found)
    assert source is not None
    if FORMATS[wanted.dialect].original and source.outside:
        layers = ", ".join(source.outside[:TOLD]) + (" and more" if len(source.outside) > TOLD else "")
        told = f"diffusers passes over layers outside of the blocks in a file of this format: {layers}"
        found.append(Problem(told, severity="notice", fix="use --format diffusers for diffusers"))
    return source, found


def _place(wanted: Wanted, default: Path) -> Path:
    if wanted.output is None:
        return default
    return wanted.output / default.name if wanted.output.is_dir() else wanted.output


def _free(path: Path) -> Iterator[Path]:
    """The path, then the same with -2, -3 and so on: those that are free now."""
    names = (path if number == 1 else path.with_stem(f"{path.stem}-{number}") for number in itertools.count(1))
    return (name for name in names if not name.exists())


def _taken(path: Path) -> Problem:
    what = "exists, and nothing is overwritten"
    return Problem(f"--output: {path} {what}", fix=f"name another, such as {next(_free(path))}")


def _kept(kept: dict[str, float] | Any) -> list[str]:
    """What a change of rank lost, for people."""
    least = sorted(kept.items(), key=lambda item: item[1])
    whole = sum(kept.values()) / len(kept)
    lines = [f"kept of the change, as its squared size: {whole:.1%} on average, and least of these layers"]
    return lines + [f"  {share:.1%}  {name}" for name, share in least[:TOLD]]
