"""Question 9: how long the run trains."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from simpletuner.data.library import Library
from simpletuner.models.options import Model
from simpletuner.plan import needs, rates, work
from simpletuner.plan.time import time
from simpletuner.wizard.questions import Field, Question, Wrong
from simpletuner.wizard.session import Session

STEPS, EPOCHS = "max_train_steps", "num_train_epochs"
WRITTEN = re.compile(r"(\d+)\s*(s|steps?|e|epochs?)?", re.IGNORECASE)
HELP = (
    "In optimizer steps, or in epochs: passes over all pictures. Too short learns little, too long learns the pictures "
    "by heart; checkpoints and sample images on the way show where it was best. Write 2000, 2000 steps or 10 epochs."
)


def _library(session: Session) -> Library:
    survey, _ = session.survey()
    assert survey is not None  # the pictures have been asked for
    return survey.library


def steps_per_epoch(session: Session) -> float:
    return needs.updates_per_epoch(session.draft(), _library(session), session.ranks)


def total_steps(session: Session) -> int:
    """Of the run as answered."""
    return needs.total_steps(session.draft(), _library(session), session.ranks)


def _proposal(session: Session) -> str:
    steps, epochs = session.option(STEPS), session.option(EPOCHS)
    if steps or epochs:
        return _named(steps, epochs)
    each, least, most = session.preset.steps
    images = sum(len(shelf.items) for shelf in _library(session).shelves)
    return _named(min(most, max(least, images * each)), 0)


def _named(steps: int, epochs: int) -> str:
    number, word = (steps, "step") if steps else (epochs, "epoch")
    return f"{number} {word}{'s' * (number != 1)}"


def _read(session: Session, given: Any) -> str:
    match = WRITTEN.fullmatch(str(given).strip())
    if not match:
        raise Wrong(f'"{given}" is not a length', "write 2000, 2000 steps or 10 epochs")
    number, in_epochs = int(match[1]), (match[2] or "s").lower().startswith("e")
    if number < 1:
        raise Wrong("a run has one step at least")
    session.checked(EPOCHS if in_epochs else STEPS, number)
    return _named(0, number) if in_epochs else _named(number, 0)


def _values(_: Session, answer: str) -> Mapping[str, Any]:
    number, word = answer.split()
    return {EPOCHS: int(number), STEPS: 0} if word.startswith("e") else {STEPS: int(number), EPOCHS: 0}


def _outcome(session: Session) -> Sequence[str]:
    per_epoch, total = steps_per_epoch(session), total_steps(session)
    other = f"{total / per_epoch:.1f} epochs of {per_epoch:g} steps"
    lines = [other if session.option(STEPS) else f"{total} steps, {per_epoch:g} an epoch"]
    if session.documents.num_image_sets > 1:
        lines = [f"{lines[0]}, counted without the other datasets of {session.documents.datasets}"]
    samples = "" if session.option("validation_disable") else "; sample images come on top"
    return lines + ([f"training takes {taken}{samples}"] if (taken := _time(session, total)) else [])


def _time(session: Session, steps: int) -> str:
    """From the rates of earlier runs on this machine, else a wide guess; empty if nothing is known of it."""
    config, library, machine = session.draft(), _library(session), session.machine
    setting = rates.setting(config, machine.device_name, work.mean_pixels(library))
    effort = work.of(config, session.family.shapes(config[Model]), library, [])
    found = time(setting, effort, machine.cores, steps=steps, images=0, texts=0, latents=0)
    if found.training is None:
        return ""
    low, high = found.training.low, found.training.high
    if low == high:
        return f"about {_span(low)}, {found.basis}"
    return f"between {_span(low)} and {_span(high)}, a guess before the first run here"


def _span(seconds: float) -> str:
    """A time in words, coarse."""
    for unit, size, below in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172_800)):
        if seconds < below:
            return f"{max(1, round(seconds / size))} {unit}"
    return f"{round(seconds / 86400)} days"


LENGTH = Question("How long?", (Field("length", "Length", HELP, _proposal, _read, config=_values, outcome=_outcome),))
