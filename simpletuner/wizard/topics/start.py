"""Question 1: where the configuration starts."""

from __future__ import annotations

from collections.abc import Sequence

from simpletuner.examples import EXAMPLES
from simpletuner.wizard.questions import Choice, Question, choice
from simpletuner.wizard.session import EXISTING, Session

NANO = "nano"
HELP = (
    "A start is a handful of settings; every later question shows what follows from it and can change it. "
    '"existing" keeps the configuration that is there and proposes its values.'
)


def _choices(session: Session) -> Sequence[Choice]:
    there = [Choice(EXISTING, f"what is in {session.documents.config}")] if session.documents.values else []
    return there + [Choice(name, preset.note) for name, preset in session.presets.items()]


def _proposal(session: Session) -> str:
    if session.documents.values:
        return EXISTING
    return "subject" if session.machine.has_gpu or NANO not in EXAMPLES else NANO


QUESTION = Question("Start from?", (choice("start", "Start", HELP, _choices, _proposal),))
