"""`simpletuner cache`: what the caches hold, made and checked without training, and cleared of what is of no use."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simpletuner import launch
from simpletuner.check import Checked
from simpletuner.cli import cache_weights, problems, sources
from simpletuner.cli.answers import agreed, answer, usable
from simpletuner.cli.cache_weights import Row
from simpletuner.errors import DataError, HardwareError, Problem, raise_errors
from simpletuner.quantization import shelf
from simpletuner.tracking.words import size
from simpletuner.training.lock import Lock
from simpletuner.training.options import Training

if TYPE_CHECKING:
    from simpletuner.caches import Flaw, Folder
    from simpletuner.data.inventory import File
    from simpletuner.plan.quantised import Wanted

SHOWN = 20  # files named before they are deleted; --dry-run and --json name all
ONLY_AFTER_A_YES = Problem("prune removes files only after a yes", fix="--yes removes them, --dry-run only lists them")
NOTHING_REMOVED = Problem("nothing was removed", fix="type yes, or give --yes")
REASONS = {
    "stale": "made by another model or precision",
    "unused": "not asked for by this configuration",
    "damaged": "found damaged and set aside",
    "half written": "left by a process that is gone",
}


@click.group(
    "cache",
    help="""Looks after the caches of a configuration: latents of pictures, embeddings of texts, quantised weights.

\b
simpletuner cache status           what is there, and what a run would make
simpletuner cache build            make it now, without training
simpletuner cache prune --dry-run  what is of no use to this configuration
""",
)
def command() -> None:
    pass


@command.command("status", context_settings=sources.ANY_OPTION, short_help="count what is there and what is missing")
@sources.shared
def status(asked: sources.Asked, as_json: bool) -> None:
    """Counts the items that are present, missing, stale and unused. Opens none."""
    from simpletuner import caches

    checked = usable(asked)
    folders, wrong = caches.survey(checked)
    weights = caches.weights(checked)
    waste = caches.unused_weights(weights)
    lines = [*_status_lines(folders, weights), *cache_weights.status_lines(weights, waste)]
    record = {"caches": [_status_record(folder) for folder in folders], "weights": cache_weights.records(weights)}
    answer(lines, record | {"other_weights": cache_weights.waste_record(waste)}, wrong, as_json)


@command.command("build", context_settings=sources.ANY_OPTION, short_help="make what is missing, without training")
@click.option(
    "--only",
    type=click.Choice(["text", "vae", "weights"]),
    help="Only the texts, the pictures, or the quantised weights.",
)
@sources.shared
def build(asked: sources.Asked, as_json: bool, only: str | None) -> None:
    """Makes what is missing, without training. Ctrl-C keeps what is made; the next build makes the rest."""
    sys.exit(_build(usable(asked), only, as_json))


@command.command("verify", context_settings=sources.ANY_OPTION, short_help="read every item and name the damaged")
@click.option("--repair", is_flag=True, help="Removes damaged items and makes them again.")
@sources.shared
def verify(asked: sources.Asked, as_json: bool, repair: bool) -> None:
    """Reads every item of the encoders in use: checksum, size, shape, and whether all numbers are finite."""
    from simpletuner import caches

    checked = usable(asked)
    folders, wrong = caches.survey(checked, read=True)
    raise_errors([*wrong, *caches.unknown(folders)], DataError)
    found, weights = _flaws(folders), caches.weights(checked)
    torn = caches.damaged_weights(weights)
    lines = [f"{folder.root / flaw.file.path}: {flaw.problem}{_of(flaw)}" for folder, flaw in found]
    lines += [f"{folder}: {problem}" for folder, problem in torn.items()]
    number = sum(len(folder.stored) for folder in folders) + sum(one.entry is not None for one in weights)
    num_damaged = len(found) + len(torn)
    lines.append(f"{_items(number)} read, {num_damaged} damaged" + _not_read(folders))
    repaired = bool(num_damaged) and repair
    if repaired:
        problems.show(wrong)
        if not as_json:
            print("\n".join(lines), file=sys.stderr)
        with Lock(checked.config[Training].output_dir):
            for folder, flaw in found:
                caches.remove(folder, [flaw.file])
            for place in torn:
                shelf.remove(place)
        if code := _build(checked, None, False):
            sys.exit(code)
        were = "was" if num_damaged == 1 else "were"
        lines = [f"{_items(num_damaged, 'damaged ')} {were} removed; what is needed of them was made again"]
    damaged = [_flaw_record(folder, flaw) for folder, flaw in found]
    damaged += [{"file": str(folder), "of": None, "problem": problem} for folder, problem in torn.items()]
    fix = "simpletuner cache verify --repair"
    left = [Problem(_items(num_damaged, "damaged cache "), "cache", fix=fix)] if num_damaged and not repaired else []
    record = {"checked": number, "damaged": damaged, "repaired": repaired}
    answer(lines, record, [*left, *([] if repaired else wrong)], as_json)


@command.command("prune", context_settings=sources.ANY_OPTION, short_help="remove what is of no use, after a yes")
@click.option("--dry-run", is_flag=True, help="Only lists what would be removed.")
@click.option("--yes", is_flag=True, help="Removes without asking.")
@sources.shared
def prune(asked: sources.Asked, as_json: bool, dry_run: bool, yes: bool) -> None:
    """Removes items that this configuration does not need, damaged ones and leftovers, after a yes.

    A folder may be shared: the list says so where other configurations may need what would be removed.
    """
    from simpletuner import caches

    checked = usable(asked)
    with Lock(checked.config[Training].output_dir):  # a run in this folder may be making items just now
        folders, wrong = caches.survey(checked, read=True)
        weights = caches.weights(checked)
        raise_errors([*wrong, *caches.unknown(folders), *cache_weights.unknown(weights)], DataError)
        found = [(folder, caches.waste(folder)) for folder in folders]
        found = [(folder, waste) for folder, waste in found if waste]
        of_weights = caches.unused_weights(weights)
        removed = bool(found or of_weights) and not dry_run
        lines = [*_prune_lines(found, everything=dry_run), *cache_weights.prune_lines(of_weights, REASONS)]
        lines = lines or ["nothing to remove"]
        if removed and not yes:
            agreed(lines, as_json, refusal=ONLY_AFTER_A_YES, denial=NOTHING_REMOVED)
        if removed:
            for folder, waste in found:
                caches.remove(folder, [file for files in waste.values() for file in files])
            for place in (folder for folders in of_weights.values() for folder in folders):
                shelf.remove(place)
    record = {"removed": removed, "caches": [_prune_record(folder, waste) for folder, waste in found]}
    record["weights"] = cache_weights.waste_record(of_weights)
    answer([*(lines if yes or not removed else []), *(["removed"] if removed else [])], record, wrong, as_json)


@command.command("rebuild-index", context_settings=sources.ANY_OPTION, short_help="read every picture anew")
@sources.shared
def rebuild_index(asked: sources.Asked, as_json: bool) -> None:
    """Makes the index of each dataset anew from its files: every one is read and decoded."""
    from simpletuner import inspection

    checked = usable(asked)
    assert checked.datasets is not None
    with Lock(checked.config[Training].output_dir):
        found, wrong = inspection.scan(checked.config, checked.datasets, again=True)
    answer([one.sentence() for one in found], {"datasets": [one.record() for one in found]}, wrong, as_json)


# ---- making


def _build(checked: Checked, only: str | None, json_events: bool) -> int:
    """Fills the caches in a process of its own; its exit code."""
    with tempfile.TemporaryDirectory(prefix="simpletuner-") as folder:
        resolved = Path(folder, "config.resolved.json")
        checked.config.write(resolved)
        argv = [sys.executable, "-m", "simpletuner.encoding", "--config", str(resolved)]
        argv += [*(["--only", only] if only else []), *(["--json"] if json_events else [])]
        code = launch.run(argv, checked.config[Training].stop_timeout, checked.config.exports)
    if code == -signal.SIGKILL:
        raise HardwareError(launch.KILLED, fix="close other programs, or use a machine with more RAM")
    return code


# ---- what is there


def _status_lines(folders: Sequence[Folder], weights: Sequence[Wanted]) -> list[str]:
    rows = [
        Row(
            part.name,
            part.needed,
            None if folder.encoder is None else len(folder.present(part)),
            sum(file.num_bytes for file in folder.present(part)),
        )
        for folder in folders
        for part in folder.parts
    ]
    rows += cache_weights.rows(weights)
    wide = max([len("CACHE"), *(len(row.name) for row in rows)])
    lines = [f"{'CACHE':<{wide}}  {'needed':>7}  {'present':>7}  {'missing':>7}  {'size':>8}"]
    for row in rows:
        known = row.present is not None
        there, missing = (str(row.present), str(row.needed - (row.present or 0))) if known else ("?", "?")
        lines.append(f"{row.name:<{wide}}  {row.needed:>7}  {there:>7}  {missing:>7}  {size(row.num_bytes):>8}")
    lines += [line for folder in folders for line in _folder_lines(folder)]
    return lines


def _folder_lines(folder: Folder) -> list[str]:
    """What else is to be said of one folder."""
    lines = [f"\n{folder.root}"]
    if folder.encoder is None:
        lines.append("  what is present is not known before the model's files were read once: simpletuner cache build")
    missing = sum(folder.bytes_missing(part) for part in folder.parts)
    lines += [f"  {size(missing)} to make"] if missing and folder.encoder else []
    unread = sum(part.unnamed for part in folder.parts) if folder.encoder else 0
    lines += [f"  {unread} pictures were never read, and count as missing"] if unread else []
    for reason, files in _counts(folder).items():
        number, num_bytes = len(files), sum(file.num_bytes for file in files)
        doubt = ", unless by the pictures that were never read" if unread and reason == "unused" else ""
        lines += [f"  {reason} {number}, {size(num_bytes)}: {REASONS[reason]}{doubt}"] if number else []
    if folder.inventory.abandoned:
        lines.append(f"  half written {len(folder.inventory.abandoned)}: {REASONS['half written']}")
    lines += [f"  {_sharing(folder)}"] if folder.shared else []
    return lines if len(lines) > 1 else []


def _counts(folder: Folder) -> dict[str, list[File]]:
    return {"stale": folder.stale, "unused": folder.unused, "damaged": list(folder.inventory.bad)}


def _sharing(folder: Folder) -> str:
    if folder.others:
        return f"shared: {', '.join(folder.others)} of another configuration may need them"
    return "outside output_dir: other configurations may use this folder"


def _status_record(folder: Folder) -> dict[str, Any]:
    known = folder.encoder is not None
    parts = [
        {
            "name": part.name,
            "needed": part.needed,
            "present": len(folder.present(part)) if known else None,
            "missing": part.needed - len(folder.present(part)) if known else None,
            "unread": part.unnamed if known else None,
            "bytes_present": sum(file.num_bytes for file in folder.present(part)),
            "bytes_missing": folder.bytes_missing(part),
        }
        for part in folder.parts
    ]
    other = {
        name: {"items": len(files), "bytes": sum(file.num_bytes for file in files)}
        for name, files in _counts(folder).items()
    }
    return {
        "folder": str(folder.root),
        "kind": folder.kind,
        "encoder": folder.encoder,
        "parts": parts,
        **other,
        "half_written": len(folder.inventory.abandoned),
        "shared": folder.shared,
        "other_datasets": folder.others,
    }


# ---- what is damaged


def _flaws(folders: Sequence[Folder]) -> list[tuple[Folder, Flaw]]:
    from simpletuner import caches
    from simpletuner.events import EventLog
    from simpletuner.tracking.console import Console

    events, console = EventLog(None), Console(sys.stderr)
    events.subscribe(console)
    try:
        return [(folder, flaw) for folder in folders for flaw in caches.flaws(folder, events)]
    finally:
        console.close()


def _items(number: int, kind: str = "") -> str:
    return f"{number} {kind}item" + "s" * (number != 1)


def _of(flaw: Flaw) -> str:
    return " (not asked for by this configuration)" if flaw.of is None else f" ({flaw.of!r})"


def _not_read(folders: Sequence[Folder]) -> str:
    stale = sum(len(folder.stale) for folder in folders)
    return f"; {stale} of other models or precisions were not read" if stale else ""


def _flaw_record(folder: Folder, flaw: Flaw) -> dict[str, str | None]:
    return {"file": str(folder.root / flaw.file.path), "of": flaw.of, "problem": flaw.problem}


# ---- what is of no use


def _prune_lines(found: Sequence[tuple[Folder, dict[str, list[File]]]], everything: bool) -> list[str]:
    lines: list[str] = []
    for folder, waste in found:
        lines.append(str(folder.root))
        lines += [f"  NOTE {_sharing(folder)}"] if folder.shared else []
        for reason, files in waste.items():
            total = size(sum(file.num_bytes for file in files))
            lines.append(f"  {reason} {len(files)}, {total}: {REASONS[reason]}")
            shown = files if everything else files[:SHOWN]
            lines += [f"    {file.path}" for file in shown]
            lines += [f"    and {len(files) - SHOWN} more"] if len(files) > len(shown) else []
    return lines


def _prune_record(folder: Folder, waste: dict[str, list[File]]) -> dict[str, Any]:
    files = {
        reason: [{"file": str(folder.root / file.path), "bytes": file.num_bytes} for file in some]
        for reason, some in waste.items()
    }
    return {"folder": str(folder.root), "shared": folder.shared, "other_datasets": folder.others, "files": files}
