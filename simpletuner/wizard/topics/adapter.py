"""Question 7: what is trained, and how large it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simpletuner.adapters.kinds import KINDS
from simpletuner.errors import ConfigError
from simpletuner.groups import OPTIONS
from simpletuner.models.options import Model
from simpletuner.plan import memory
from simpletuner.wizard.questions import Choice, Question, Wrong, choice, option
from simpletuner.wizard.session import Session

FULL, RANK = "full", "lora_rank"
MB = 1e6


def result_bytes(session: Session, **more: Any) -> int:
    """Of the file or folder that a finished run leaves. Wrong if the targets name no layer of this model."""
    config = session.draft(**more)
    family = session.family
    try:
        return memory.result_bytes(config, family, family.shapes(config[Model]))
    except ConfigError as error:
        raise Wrong(error.problems[0].message, error.problems[0].fix) from error


def _kinds(session: Session) -> Sequence[Choice]:
    """The adapters; training all weights is offered only to those who do so already."""
    found = [Choice(name, line) for name, line in session.available("lora_type")]
    return found + ([Choice(FULL, "every weight")] if session.documents.values.get("model_type") == FULL else [])


def _proposal(session: Session) -> str:
    return FULL if session.option("model_type") == FULL else str(session.option("lora_type"))


def _values(_: Session, answer: str) -> Mapping[str, Any]:
    return {"model_type": FULL} if answer == FULL else {"model_type": "lora", "lora_type": answer}


def _rank(session: Session, given: Any) -> Any:
    rank = session.checked(RANK, given)
    result_bytes(session, lora_rank=rank)
    return rank


def _outcome(session: Session) -> Sequence[str]:
    title = KINDS[session.option("model_type")].title
    return (f"the {title} will have about {result_bytes(session) / MB:,.1f} MB, on {_target(session)}",)


def _target(session: Session) -> str:
    own = session.option("peft_lora_target_modules")
    preset = session.option("flux_lora_target")
    return "modules of your own" if own else f'"{preset}": {dict(OPTIONS["flux_lora_target"].choices)[preset]}'


ADAPTER = Question(
    "Which adapter?",
    (
        choice(
            "adapter", "Adapter", OPTIONS["lora_type"].help, _kinds, _proposal, key="lora_type", config=_values,
        ),
        option(
            "rank", "Rank", RANK, read=_rank, applies=lambda session: session.answers.get("adapter") == "standard",
            outcome=_outcome,
        ),
    ),
)  # fmt: skip
