"""What a question is, as data: what is asked, what is proposed, what may be answered, and where the answer goes.

A question is one number for people and one or more fields; a field is one answer under one name, the same in the
terminal, in a file of answers and in a form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simpletuner.groups import OPTIONS
from simpletuner.registry import did_you_mean

if TYPE_CHECKING:
    from simpletuner.wizard.session import Session

YES, NO = "yes", "no"


class Wrong(Exception):
    """An answer that cannot be taken. The text is the reason, `fix` what to answer instead."""

    def __init__(self, reason: str, fix: str = ""):
        super().__init__(reason)
        self.fix = fix


@dataclass(frozen=True)
class Choice:
    """One of the answers that a field offers."""

    value: str
    note: str = ""  # what it means or costs, on one line


def nothing(_: Session, __: Any) -> Mapping[str, Any]:
    return {}


def always(_: Session) -> bool:
    return True


def silent(_: Session) -> Sequence[str]:
    return ()


def no_choices(_: Session) -> Sequence[Choice]:
    return ()


@dataclass(frozen=True)
class Field:
    """One answer. All functions get the answers that came before it."""

    name: str  # of the answer
    ask: str  # a few words before the cursor
    help: str  # what `?` shows
    proposal: Callable[[Session], Any]  # None: there is nothing to propose
    read: Callable[[Session, Any], Any]  # an answer as text or JSON -> the answer; Wrong if it cannot be one
    choices: Callable[[Session], Sequence[Choice]] = no_choices
    applies: Callable[[Session], bool] = always
    key: str = ""  # the option that the answer is about: written even at its default if the user chose it
    config: Callable[[Session, Any], Mapping[str, Any]] = nothing  # option -> value; None takes a key out
    entry: Callable[[Session, Any], Mapping[str, Any]] = nothing  # key of the dataset -> value
    outcome: Callable[[Session], Sequence[str]] = silent  # what follows from the answer, for people
    path: bool = False  # the answer is a path, which a terminal can complete
    aside: bool = False  # leads to nothing that is written, so that a file of answers need not hold it


@dataclass(frozen=True)
class Question:
    """What people call one question."""

    title: str
    fields: tuple[Field, ...]
    seen: Callable[[Session], Sequence[str]] = silent  # what was found, before the first field is asked


def choice(
    name: str, ask: str, help: str, choices: Callable[[Session], Sequence[Choice]],
    proposal: Callable[[Session], str | None], **more: Any,
) -> Field:  # fmt: skip
    """A field with a fixed set of answers."""
    return Field(name, ask, help, proposal, _chosen(choices), choices, **more)


def yes_no(name: str, ask: str, help: str, proposal: str, **more: Any) -> Field:
    both = (Choice(YES), Choice(NO))
    return choice(name, ask, help, lambda _: both, lambda _: proposal, **more)


def _chosen(choices: Callable[[Session], Sequence[Choice]]) -> Callable[[Session, Any], str]:
    def read(session: Session, given: Any) -> str:
        known = [one.value for one in choices(session)]
        word = str(given).strip()
        exact = [value for value in known if value.lower() == word.lower()]
        begun = [value for value in known if word and value.lower().startswith(word.lower())]
        if exact or len(begun) == 1:
            return (exact or begun)[0]
        raise Wrong(f'"{word}" is none of the choices' if word else "nothing is chosen", did_you_mean(word, known))

    return read


def whole(least: int = 0) -> Callable[[Session, Any], int]:
    """Reads a whole number from `least` up."""

    def read(_: Session, given: Any) -> int:
        text = str(given).strip()
        if isinstance(given, bool) or not text.isdigit() or int(text) < least:
            raise Wrong(f'"{text}" is not a whole number from {least} up')
        return int(text)

    return read


def option(name: str, ask: str, key: str, **more: Any) -> Field:
    """A field about one option: its help, its bounds, and the value that it would have anyway as the proposal."""
    settings: dict[str, Any] = {
        "help": OPTIONS[key].help,
        "proposal": lambda session: session.option(key),
        "read": lambda session, given: session.checked(key, given),
        "config": lambda _, answer: {key: answer},
        "key": key,
    }
    return Field(name, ask, **(settings | more))


def text(_: Session, given: Any) -> str:
    if not isinstance(given, str):
        raise Wrong(f"{given} is not a text")
    return given.strip()


def fields(questions: Iterable[Question]) -> list[Field]:
    return [field for question in questions for field in question.fields]
