"""`simpletuner checkpoint`: what a run has saved, whether it is whole, and which of it stays."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from simpletuner import config as configuration
from simpletuner.adapters.kinds import LORA
from simpletuner.cli import export, flags, problems, sources
from simpletuner.cli.answers import agreed, answer
from simpletuner.errors import ConfigError, DiskError, Problem, raise_errors
from simpletuner.events import EventLog
from simpletuner.registry import did_you_mean
from simpletuner.tracking.words import size
from simpletuner.training import manifest, upkeep
from simpletuner.training.lock import Lock
from simpletuner.training.options import Saving, Training
from simpletuner.training.upkeep import Doomed, Kept

PATH = click.Path(path_type=Path)
ONLY_AFTER_A_YES = Problem("checkpoints are removed only after a yes", fix="give --yes; --dry-run lists them")
NOTHING_REMOVED = Problem("no checkpoint was removed", fix="type yes, or give --yes")
WHERE = (
    click.option("--dir", "named", type=PATH, metavar="DIR", help="The run's folder, in place of the configuration's."),
    click.option("--config", "config_path", metavar="PATH", help="Configuration whose output_dir is meant."),
    click.option("--env", metavar="NAME", help="Environment whose output_dir is meant: the folder config/NAME."),
    click.option("-e", "--example", metavar="NAME", help="Example whose output_dir is meant."),
)


@click.group(
    "checkpoint",
    help="""Looks after the checkpoints of a run: those of DIR, or of the output_dir of the configuration found.

\b
  simpletuner checkpoint list                     what there is, and what a resume would take
  simpletuner checkpoint prune --keep 2           lists what would go, and asks
  simpletuner checkpoint pin checkpoint-1000      keeps it from every deletion
""",
)
def command() -> None:
    pass


def of_a_run(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the ways to name a run; `function` gets its folder as `output_dir`."""

    @functools.wraps(function)
    def inner(named: Path | None, config_path: str | None, env: str | None, example: str | None, **rest: Any) -> None:
        places = [place for place in (rest.pop("folder", None), named) if place is not None]
        asked = sources.Asked(config_path=config_path, env=env, example=example, words=())
        if len(places) > 1 or (places and any((config_path, env, example))):
            raise ConfigError("the folder of the run is named twice", fix="name it once")
        function(output_dir=_existing(places[0] if places else _configured(asked)), **rest)

    for option in reversed(WHERE):
        inner = option(inner)
    return inner


def _configured(asked: sources.Asked) -> Path:
    """The output_dir of the configuration found."""
    given = sources.find(asked)
    config, found = configuration.load(given.files, given.overrides)
    raise_errors(found)
    default = "no configuration in this folder: the output_dir of the example nano is meant"
    problems.show([*([Problem(default, severity="notice")] if given.by_default else []), *given.notices])
    return config[Training].output_dir


def _existing(output_dir: Path) -> Path:
    if output_dir.is_dir():
        return output_dir
    what = "is a file" if output_dir.exists() else "does not exist"
    raise ConfigError(f"{output_dir} {what}: no run has saved there", fix="name the output_dir of a run")


# ---- list and verify


@command.command("list")
@click.argument("folder", type=PATH, required=False, metavar="[DIR]")
@of_a_run
def list_(output_dir: Path) -> None:
    """Step, time, size and state of each checkpoint; every file is read. `latest` is what a resume takes."""
    kept, aside = upkeep.survey(output_dir), upkeep.left_over(output_dir)
    newest = upkeep.newest_valid(kept)
    earlier = sorted(path for home in output_dir.glob("earlier-*") for path in manifest.steps(home).values())
    lines = [_line(one, one is newest) for one in kept] or [f"no checkpoints in {output_dir}"]
    lines += [f"{one.path.name:<24}  {size(one.num_bytes):>9}  {one.why}" for one in aside]
    lines += [f"{path.relative_to(output_dir)!s:<24}  of a way that the run left; never removed" for path in earlier]
    record = {
        "output_dir": str(output_dir),
        "checkpoints": [_record(one) | {"latest": one is newest} for one in kept],
        "set_aside": [_doomed(one) for one in aside],
        "earlier": [str(path.relative_to(output_dir)) for path in earlier],
    }
    answer(lines, record, [], flags.current().json)


def _line(one: Kept, latest: bool) -> str:
    saved = datetime.fromtimestamp(one.saved).strftime("%Y-%m-%d %H:%M")
    state = "valid" if one.valid else f"damaged: {one.problems[0]}"
    marks = [word for word, holds in (("pinned", one.pinned), ("latest", latest)) if holds]
    return f"{one.path.name:<24}  {size(one.num_bytes):>9}  {saved}  {', '.join([state, *marks])}"


def _record(one: Kept) -> dict[str, Any]:
    saved = datetime.fromtimestamp(one.saved).astimezone().isoformat(timespec="seconds")
    return asdict(one) | {"path": str(one.path), "saved": saved, "valid": one.valid}


def _doomed(one: Doomed) -> dict[str, Any]:
    return {"path": str(one.path), "bytes": one.num_bytes, "why": one.why}


@command.command("verify")
@click.argument("folder", type=PATH, required=False, metavar="[DIR]")
@of_a_run
def verify(output_dir: Path) -> None:
    """Compares every file with the manifest of its checkpoint. Exit code 7 if no checkpoint is valid."""
    kept = upkeep.survey(output_dir)
    newest = upkeep.newest_valid(kept)
    damaged = [
        Problem(f"{one.path} is damaged", "disk", "warning", details=one.problems, fix="a resume passes it over")
        for one in kept
        if not one.valid
    ]
    none = "put a good copy back, or train with resume_from_checkpoint=none"
    wrong = [] if newest else [Problem(f"no checkpoint in {output_dir} is valid", "disk", fix=none)]
    lines = [f"{one.path.name} is whole" for one in kept if one.valid]
    lines += [f"latest is {newest.path.name}"] if newest else []
    record = {"checkpoints": [_record(one) for one in kept], "latest": newest.path.name if newest else None}
    answer(lines, record, [*damaged, *wrong], flags.current().json)


# ---- prune and pin


@command.command("prune")
@click.argument("folder", type=PATH, required=False, metavar="[DIR]")
@click.option(
    "--keep", type=click.IntRange(min=1), metavar="N", help="How many stay; checkpoints_total_limit unless given."
)
@click.option("--yes", is_flag=True, help="Removes without asking.")
@click.option("--dry-run", is_flag=True, help="Only lists what would be removed.")
@of_a_run
def prune(output_dir: Path, keep: int | None, yes: bool, dry_run: bool) -> None:
    """Removes checkpoints that are old or damaged, and what failed saves left, after a yes.

    The newest valid one, the pinned ones and multiples of checkpoints_keep_every stay.
    """
    with nullcontext() if dry_run else Lock(output_dir):  # held while it asks: no run begins meanwhile
        limit, every = _limits(output_dir)
        found = upkeep.prunable(output_dir, upkeep.survey(output_dir), keep or limit, every)
        lines = [f"{one.path.name:<24}  {size(one.num_bytes):>9}  {one.why}" for one in found]
        lines += [f"{size(sum(one.num_bytes for one in found))} in all"] if found else ["nothing to remove"]
        removed = bool(found) and not dry_run
        if removed and not yes:
            agreed(lines, flags.current().json, refusal=ONLY_AFTER_A_YES, denial=NOTHING_REMOVED)
            lines = []
        wrong = _remove(output_dir, found) if removed else []
    gone = len(found) - len(wrong)
    lines += [f"{gone} removed"] if removed else []
    answer(lines, {"removed": removed, "folders": [_doomed(one) for one in found]}, wrong, flags.current().json)


def _limits(output_dir: Path) -> tuple[int, int]:
    """(checkpoints_total_limit, checkpoints_keep_every) that the run was started with; the defaults if none was."""
    path = output_dir / "config.resolved.json"
    config, found = configuration.load(path if path.is_file() else None, {}, {})
    raise_errors(found)
    saving = config[Saving]
    return saving.checkpoints_total_limit, saving.checkpoints_keep_every


def _remove(output_dir: Path, doomed: Sequence[Doomed]) -> list[Problem]:
    """Removes the folders and tells the run's events; what could not be removed."""
    events, wrong = EventLog(output_dir), []
    for one in doomed:
        try:
            upkeep.delete(one.path)
        except OSError as error:
            fix = "check the permissions, then prune again"
            wrong.append(Problem(f"{one.path} could not be removed: {error.strerror or error}", "disk", fix=fix))
        else:
            events.emit("checkpoint.deleted", path=one.path.name, reason=f"prune: {one.why}")
    return wrong


@command.command("pin")
@click.argument("name")
@click.option("--unpin", is_flag=True, help="Lets it be deleted again.")
@of_a_run
def pin(output_dir: Path, name: str, unpin: bool) -> None:
    """Keeps the checkpoint NAME from every deletion, by prune and by the run itself. NAME may be its step."""
    path = _named(output_dir, name)
    (upkeep.unpin if unpin else upkeep.pin)(path)
    done = "may be deleted again" if unpin else "is pinned: it is never deleted"
    if flags.current().json:
        click.echo(json.dumps({"checkpoint": str(path), "pinned": not unpin}, ensure_ascii=False))
    else:
        click.echo(f"{path.name} {done}")


def _named(output_dir: Path, name: str) -> Path:
    """The checkpoint that is meant: its name, its step or `latest`. ConfigError if there is none such."""
    if name == "latest" and (newest := upkeep.newest_valid(upkeep.survey(output_dir))):
        return newest.path
    known = {path.name: path for path in manifest.steps(output_dir).values()}
    known |= {one.path.name: one.path for one in upkeep.left_over(output_dir)}
    name = f"checkpoint-{int(name)}" if name.isdecimal() else Path(name).name
    if name in known:
        return known[name]
    fix = did_you_mean(name, known) if known else "it holds none"
    raise ConfigError(f"{output_dir} has no checkpoint {name}", fix=fix)


# ---- export


@command.command("export")
@click.argument("name")
@export.described
@of_a_run
def export_(output_dir: Path, name: str, wanted: export.Wanted) -> None:
    """Writes the LoRA of the checkpoint NAME in another layout, into the folder of the run or as PATH."""
    path = _named(output_dir, name)
    one = upkeep.look(path)
    if not one.valid:
        fix = "simpletuner checkpoint list shows which are valid"
        raise DiskError(f"{path} is damaged", fix=fix, details=one.problems)
    file = path / LORA
    if not file.is_file():
        fix = "name a checkpoint of a LoRA: what trained the whole model is a model itself"
        raise ConfigError(f"{path} holds no {LORA}", fix=fix)
    run = output_dir.resolve().name
    export.write(file, wanted, output_dir / f"{run}-{one.step}-{wanted.dialect}{export.SUFFIX}")
