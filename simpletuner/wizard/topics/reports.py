"""Question 12: who else sees the run. Nothing leaves the machine unless somebody says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simpletuner import retired
from simpletuner.groups import OPTIONS
from simpletuner.wizard.questions import NO, YES, Choice, Question, choice, option, yes_no
from simpletuner.wizard.session import Session

LOCAL, WEBHOOK = "local", "webhook"
REPORT_TO, PUSH, PRIVATE, WEBHOOK_CONFIG = "report_to", "push_to_hub", "model_card_private", "webhook_config"
SAME = ("none", "simpletuner", "all")  # local, or not one tracker
HELP = "A report, metrics and images always lie in the output folder. A tracker or a webhook sends them elsewhere too."
SEEN = "everything stays in the output folder: report.html, metrics.jsonl, images"


def _choices(session: Session) -> Sequence[Choice]:
    trackers = [Choice(name, line) for name, line in session.available(REPORT_TO) if name not in SAME]
    hooks = [] if WEBHOOK_CONFIG in retired.NOT_YET else [Choice(WEBHOOK, "Discord, or an address of your own")]
    return [Choice(LOCAL, "this machine only"), *trackers, *hooks]


def _proposal(session: Session) -> str:
    offered = [one.value for one in _choices(session)]
    present = [name for name in session.option(REPORT_TO) if name in offered]
    return present[0] if present else LOCAL


def _values(_: Session, answer: str) -> Mapping[str, Any]:
    return {REPORT_TO: [answer] if answer not in (LOCAL, WEBHOOK) else ["none"]}


def _may_push(_: Session) -> bool:
    return PUSH not in retired.NOT_YET


REPORTS = Question(
    "Who else should see this run?",
    (
        choice("reports", "Reports", HELP, _choices, _proposal, key=REPORT_TO, config=_values),
        option(
            "webhook", "File that says where to", WEBHOOK_CONFIG,
            applies=lambda session: session.answers.get("reports") == WEBHOOK, path=True,
        ),
        yes_no(
            "hub", "Upload the result to the Hugging Face Hub", OPTIONS[PUSH].help, NO, applies=_may_push, key=PUSH,
            config=lambda _, answer: {PUSH: answer == YES},
        ),
        yes_no(
            "private", "Keep it private there", OPTIONS[PRIVATE].help, YES, key=PRIVATE,
            applies=lambda session: session.answers.get("hub") == YES,
            config=lambda _, answer: {PRIVATE: answer == YES},
        ),
    ),
    seen=lambda _: (SEEN,),
)  # fmt: skip
