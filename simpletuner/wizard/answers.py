"""Answers without a conversation: from a file, or every proposal as it is; and the answers given, as such a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from simpletuner import reading
from simpletuner.errors import ConfigError, Problem, raise_errors
from simpletuner.registry import did_you_mean
from simpletuner.wizard.questions import Field, Wrong, fields
from simpletuner.wizard.session import Session

ACCEPTED = "_accepted"  # names of answers that took the proposal: at a default they leave no line behind
Where = Callable[..., str]


def take(session: Session, field: Field, given: Any, accepted: bool = False) -> None:
    """Gives the session an answer. Wrong if it cannot be one."""
    session.give(field, field.read(session, given), accepted)


def read(path: Path) -> reading.Document:
    """A file of answers. ConfigError if it is none."""
    document = reading.read(path)
    raise_errors(document.problems)
    if not isinstance(document.value, dict):
        raise ConfigError("expected an object of answers", where=document.where(), fix='write { "start": "subject" }')
    return document


def replay(session: Session, document: reading.Document) -> list[Problem]:
    """Answers all questions from a file. What is missing or wrong is an error with the question's name."""
    given = {reading.canonical_key(key): value for key, value in document.value.items()}
    accepted = given.pop(ACCEPTED, [])
    problems: list[Problem] = []
    known = [field.name for field in fields(session.questions)]
    for name in [name for name in given if name not in known and name[:1] not in "_$"]:
        problems.append(_wrong(f'no question is called "{name}"', document.where(name), did_you_mean(name, known)))
    for field in fields(session.questions):
        if not field.applies(session):
            if field.name in given:
                message = f"{field.name}: not asked, after the answers before it"
                problems.append(Problem(message, severity="notice", where=document.where(field.name)))
        elif not _answer(session, field, given, field.name in accepted, document.where, problems):
            break
    return problems


def _answer(
    session: Session, field: Field, given: Mapping[str, Any], accepted: bool, where: Where, problems: list[Problem]
) -> bool:
    """Takes an answer, or the proposal in its place to see what else is wrong. False if there is none to go on with."""
    proposal = field.proposal(session)
    if field.name in given:
        try:
            take(session, field, given[field.name], accepted)
            return True
        except Wrong as wrong:
            problems.append(_wrong(f"{field.name}: {wrong}", where(field.name), wrong.fix))
    elif not field.aside:
        shown = json.dumps("..." if proposal is None else proposal, ensure_ascii=False)
        problems.append(_wrong(f"{field.name}: no answer", where(), f'add "{field.name}": {shown}'))
    try:
        take(session, field, proposal, accepted=True)
    except Wrong:
        return False
    return True


def propose(session: Session, given: Mapping[str, Any]) -> None:
    """Answers all questions with their proposals, but for those of `given`. ConfigError where there is none."""
    for field in fields(session.questions):
        if not field.applies(session):
            continue
        named = field.name in given
        try:
            take(session, field, given[field.name] if named else field.proposal(session), accepted=not named)
        except Wrong as wrong:
            fix = wrong.fix or "answer it on a terminal, or with --answers FILE"
            raise ConfigError(f"{field.name}: {wrong}", fix=fix, where="command line") from wrong


def text(session: Session) -> str:
    """The answers of a session as a file that `replay` reads."""
    kept = [field.name for field in session.answered if not field.aside]
    record: dict[str, Any] = {name: session.answers[name] for name in kept}
    record[ACCEPTED] = [name for name in kept if name in session.accepted]
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def _wrong(message: str, where: str, fix: str) -> Problem:
    return Problem(message, where=where, fix=fix)
