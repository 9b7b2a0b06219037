"""Question 3: which model."""

from __future__ import annotations

from collections.abc import Sequence

from simpletuner.groups import OPTIONS
from simpletuner.models import access
from simpletuner.models.options import Model
from simpletuner.wizard.questions import NO, YES, Choice, Question, choice, yes_no
from simpletuner.wizard.session import Session

KEY = "model_flavour"
ACCESS_HELP = (
    "Asks the hub whether your login may read this model; waits a few seconds at most. Nothing else is sent, and "
    "nothing is downloaded. A model of this kind needs its terms accepted on its page once."
)


def _choices(session: Session) -> Sequence[Choice]:
    flavours = session.family.flavours
    usable = [flavour for flavour in flavours.values() if not flavour.later]
    return [Choice(f.name, f.licence.partition(", ")[0] + (", gated" if f.gated else "")) for f in usable]


def _proposal(session: Session) -> str:
    offered = [one.value for one in _choices(session)]
    chosen = KEY in session.documents.values or KEY in session.preset.values
    now = session.option(KEY)
    if not session.machine.has_gpu and not chosen and "nano" in offered:
        return "nano"
    return now if now in offered else offered[0]


def _seen(session: Session) -> Sequence[str]:
    if session.machine.has_gpu:
        return ()
    return ("without a GPU only nano trains in minutes; the others would take weeks",)


def _outcome(session: Session) -> Sequence[str]:
    flavour, model = session.flavour, session.draft()[Model]
    lines = [f"licence: {flavour.licence}; the result inherits it"]
    on_disk = session.family.on_disk(model)
    if not on_disk.missing:
        return [*lines, "it is on this disk"]
    size = on_disk.bytes_to_fetch(session.family.shapes(model))
    return [*lines, f"not on this disk: the start of the run downloads about {size / 1e9:.0f} GB"]


def _unsure(session: Session) -> bool:
    """Whether there is something to ask the hub."""
    on_disk = session.family.on_disk(session.draft()[Model])
    return access.gated(session.flavour, on_disk.place) and bool(on_disk.missing)


def _access(session: Session) -> Sequence[str]:
    if session.answers.get("access") != YES:
        return (f"its terms: {session.family.on_disk(session.draft()[Model]).place.page}, then: hf auth login",)
    from simpletuner.doctor import hub

    return [line for found in hub.model(session.draft(), offline=False) for line in (found.text, found.fix) if line]


MODEL = Question(
    "Which model?",
    (
        choice(
            "model", "Model", OPTIONS[KEY].help, _choices, _proposal, key=KEY, config=lambda _, a: {KEY: a},
            outcome=_outcome,
        ),
        yes_no(
            "access", "Ask the hub now whether you may read it", ACCESS_HELP, NO, applies=_unsure, outcome=_access,
            aside=True,
        ),
    ),
    seen=_seen,
)  # fmt: skip
