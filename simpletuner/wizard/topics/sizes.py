"""Question 6: how large the training images are, how they are cut, and how often each is met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from simpletuner.data.datasets import FLUX_ALIGNMENT, LEAST_EDGE_CELLS
from simpletuner.data.geometry import enlargement
from simpletuner.data.library import Shelf
from simpletuner.data.options import ImageEntry
from simpletuner.data.sampling import smallest_repeats
from simpletuner.groups import OPTIONS
from simpletuner.wizard.questions import Choice, Field, Question, Wrong, choice, whole
from simpletuner.wizard.session import Session
from simpletuner.wizard.topics.pictures import plain

SIZES = (1024, 768, 512)  # proposed ones, for FLUX.1
SHARP = 0.75  # share of the pictures that must not grow, for a size to be proposed
CUTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "keep": ("keeps the shape, trims the edges", {"crop": False}),
    "centre": ("a square from the middle", {"crop": True, "crop_aspect": "square", "crop_style": "center"}),
    "random": ("a square from anywhere", {"crop": True, "crop_aspect": "square", "crop_style": "random"}),
    "as it is": ("what the dataset file says", {}),
}
SHOWN = 4  # buckets
SIZE_HELP = OPTIONS["resolution"].help + " Pictures that are smaller have to grow, and teach their blur."


def _shelf(session: Session, **more: Any) -> Shelf:
    survey, problems = session.survey(**more)
    wrong = [problem for problem in problems if problem.severity == "error"]
    if survey is None or survey.shelf is None:
        first = wrong[0] if wrong else None
        raise Wrong(first.message.partition(": ")[2] if first else "no picture can be used", first.fix if first else "")
    return survey.shelf


def _grown(shelf: Shelf) -> list[float]:
    shares = [enlargement(sample.size, placement.resize) for sample, placement in shelf.items]
    return [share for share in shares if share > 0]


def _area(session: Session) -> bool:
    return session.setting("resolution_type") == "area"


def _proposal(session: Session) -> float | int:
    """The size of preset or dataset file; else the largest at which most pictures stay as large as they are."""
    fixed = {**session.documents.entry, **session.preset.entry}.get("resolution")
    if fixed is not None or "resolution" in session.documents.values or _area(session):
        return _tidy(session.setting("resolution"))
    survey = plain(session)
    shelf = survey.shelf if survey else None
    edges = [sqrt(item.sample.size.area) for item in shelf.items] if shelf else []
    sizes = SIZES if session.flavour.alignment == FLUX_ALIGNMENT else (LEAST_EDGE_CELLS * session.flavour.alignment,)
    sharp = [size for size in sizes if edges and sum(edge >= size for edge in edges) >= SHARP * len(edges)]
    return sharp[0] if sharp else sizes[-1]


def _tidy(value: Any) -> float | int:
    number = float(value)
    return int(number) if number.is_integer() else number


def _size(session: Session, given: Any) -> float | int:
    value = _tidy(session.checked("resolution", given))
    shelf = _shelf(session, resolution=value)
    if not shelf.items:
        reasons = ", ".join(f"{reason} {count}" for reason, count in shelf.scan.reasons().items())
        raise Wrong(f"no picture can be used at {value}: {reasons}")
    return value


def _size_outcome(session: Session) -> Sequence[str]:
    shelf = _shelf(session)
    grown = _grown(shelf)
    if not grown:
        return ("no picture has to grow",)
    return (f"{len(grown)} of {len(shelf.items)} would have to grow, by up to {max(grown):.0%}",)


def _cuts(session: Session) -> Sequence[Choice]:
    offered = [name for name in CUTS if name != "as it is" or session.documents.place is not None]
    return [Choice(name, CUTS[name][0]) for name in offered]


def _cut_proposal(session: Session) -> str:
    if session.documents.place is not None and not session.preset.entry:
        return "as it is"
    if not session.setting("crop"):
        return "keep"
    return "centre" if session.setting("crop_style") == "center" else "random"


def _cut_entry(_: Session, answer: str) -> Mapping[str, Any]:
    if answer != "keep":
        return CUTS[answer][1]
    return {"crop": False, "crop_aspect": None, "crop_style": None, "crop_aspect_buckets": None}


def _cut_outcome(session: Session) -> Sequence[str]:
    shelf = _shelf(session)
    buckets = [f"{name} ({len(items)})" for name, items in shelf.buckets().items()]
    rest = f", {len(buckets) - SHOWN} more" if len(buckets) > SHOWN else ""
    lines = [f"sizes: {', '.join(buckets[:SHOWN])}{rest}"]
    told = plain(session)  # what cannot be read was named with the folder
    known = told.shelf.scan.reasons() if told and told.shelf else {}
    new = [f"{reason} {count}" for reason, count in shelf.scan.reasons().items() if known.get(reason) != count]
    return lines + ([f"left out: {', '.join(new)}"] if new else [])


def _update(session: Session) -> int:
    """Pictures of one update."""
    size = session.entry.get("train_batch_size") or session.option("train_batch_size")
    return int(size) * int(session.option("gradient_accumulation_steps")) * session.ranks


def _too_small(session: Session) -> bool:
    repeats = int(session.documents.entry.get("repeats", 0) or 0)
    return len(_shelf(session).items) * (1 + repeats) < _update(session)


def _repeats_proposal(session: Session) -> int:
    return smallest_repeats(len(_shelf(session).items), _update(session))


def _repeats(session: Session, given: Any) -> int:
    number, images = whole()(session, given), len(_shelf(session).items)
    if images * (1 + number) < (need := _update(session)):
        least = smallest_repeats(images, need)
        raise Wrong(f"{images} pictures met {1 + number} times do not fill an update of {need}", f"{least} is enough")
    return number


SIZES_AND_CUTS = Question(
    "Size and crop?",
    (
        Field(
            "size", "Size", SIZE_HELP, _proposal, _size, key="resolution",
            entry=lambda _, answer: {"resolution": answer}, outcome=_size_outcome,
        ),
        choice(
            "crop", "Crop", f"{ImageEntry.model_fields['crop'].description}", _cuts, _cut_proposal, key="crop",
            entry=_cut_entry, outcome=_cut_outcome,
        ),
        Field(
            "repeats", "The set is smaller than one update. Repeats",
            f"{ImageEntry.model_fields['repeats'].description}", _repeats_proposal, _repeats, applies=_too_small,
            entry=lambda _, answer: {"repeats": answer},
        ),
    ),
)  # fmt: skip
