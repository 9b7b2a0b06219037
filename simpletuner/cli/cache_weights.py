"""What `simpletuner cache` says of quantised weights: whole folders, which all runs of a user share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from simpletuner.errors import Problem
from simpletuner.tracking.words import size

if TYPE_CHECKING:
    from simpletuner.plan.quantised import Wanted

SHARED = "shared: other configurations may need them"
Waste = Mapping[str, Sequence[Path]]  # folders by reason


class Row(NamedTuple):
    """A line of the table of caches."""

    name: str
    needed: int
    present: int | None  # None: not known
    num_bytes: int


def rows(found: Sequence[Wanted]) -> list[Row]:
    return [
        Row(
            one.title,
            1,
            None if one.key is None else int(one.entry is not None),
            one.entry.num_bytes if one.entry else 0,
        )
        for one in found
    ]


def status_lines(found: Sequence[Wanted], waste: Waste) -> list[str]:
    """What else is to be said of the folder."""
    if not found:
        return []
    lines = [f"\n{found[0].root}"]
    if any(one.key is None for one in found):
        return [
            *lines,
            "  what is present is not known before the model's files were read once: simpletuner cache build",
        ]
    missing = sum(one.num_bytes for one in found if not one.entry)
    lines += [f"  {size(missing)} to make"] if missing else []
    lines += waste_lines(waste, {})
    return lines if len(lines) > 1 else []


def waste_lines(waste: Waste, reasons: Mapping[str, str]) -> list[str]:
    from simpletuner.quantization import shelf

    lines = []
    for reason, folders in waste.items():
        total = size(sum(map(shelf.num_bytes, folders)))
        why = reasons.get(reason) or (SHARED if reason == "unused" else "left by a process that is gone")
        lines.append(f"  {reason} {len(folders)}, {total}: {why}")
    return lines


def prune_lines(waste: Waste, reasons: Mapping[str, str]) -> list[str]:
    """What would be removed: each folder with what it holds."""
    from simpletuner.quantization import shelf

    if not waste:
        return []
    root = next(iter(waste.values()))[0].parent
    lines = [str(root), f"  NOTE {SHARED}", *waste_lines(waste, reasons)]
    for folders in waste.values():
        for folder in folders:
            entry = shelf.read(folder)
            lines.append(
                f"    {folder.name[:12]}  {entry.title if entry else 'not whole'}  {size(shelf.num_bytes(folder))}"
            )
    return lines


def records(found: Sequence[Wanted]) -> list[dict[str, Any]]:
    return [
        {
            "part": one.part,
            "kind": one.kind,
            "folder": str(one.root),
            "key": one.key,
            "present": None if one.key is None else one.entry is not None,
            "bytes": one.entry.num_bytes if one.entry else one.num_bytes,
        }
        for one in found
    ]


def waste_record(waste: Waste) -> dict[str, list[dict[str, Any]]]:
    from simpletuner.quantization import shelf

    return {
        reason: [{"folder": str(folder), "bytes": shelf.num_bytes(folder)} for folder in folders]
        for reason, folders in waste.items()
    }


def unknown(found: Sequence[Wanted]) -> list[Problem]:
    """An error if nobody can say which quantised weights are in use."""
    if all(one.key for one in found):
        return []
    message = f"{found[0].root}: which weights are in use is not known before the model's files were read once"
    return [Problem(message, "cache", fix="simpletuner cache build")]
