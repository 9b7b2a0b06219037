"""Question 10: where the run leaves its work, and how often it saves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simpletuner import examples
from simpletuner.adapters.kinds import KINDS
from simpletuner.groups import OPTIONS
from simpletuner.launch import RESOLVED
from simpletuner.machine import disk_free
from simpletuner.optim.options import Optimizer
from simpletuner.plan.disk import at_once, checkpoint_bytes
from simpletuner.training.options import Saving
from simpletuner.wizard.questions import Field, Question, Wrong, option, text
from simpletuner.wizard.session import Session
from simpletuner.wizard.topics.adapter import result_bytes
from simpletuner.wizard.topics.length import total_steps
from simpletuner.wizard.topics.pictures import FOLDER, plain_name

OUTPUT, EVERY, KEPT = "output_dir", "checkpoint_step_interval", "checkpoints_total_limit"
RESULTS = "simpletuner-results"


def _proposal(session: Session) -> str:
    """The folder that the configuration has; else one named after its environment or the pictures, without a run."""
    present = session.documents.values.get(OUTPUT)
    if present and session.goes_on:
        return str(present)
    home = Path("..", RESULTS) if _within_pictures(session, Path(RESULTS)) else Path(RESULTS)
    own = session.documents.config.parent.name
    name = plain_name(own if own not in ("", "config") else str(session.entry[FOLDER]))
    free = next(number for number in range(1, 1000) if not _holds_a_run(home / _numbered(name, number)))
    return (home / _numbered(name, free)).as_posix()


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _holds_a_run(place: Path) -> bool:
    return (place / RESOLVED).exists() or any(place.glob("checkpoint-*"))


def _within_pictures(session: Session, place: Path) -> bool:
    root = Path(examples.resolve(str(session.entry[FOLDER]))).expanduser().resolve()
    resolved = place.expanduser().resolve()
    return resolved == root or root in resolved.parents


def _output(session: Session, given: Any) -> str:
    name = text(session, given)
    if not name:
        raise Wrong("a run needs a folder for what it makes")
    place = Path(name).expanduser()
    if place.is_file():
        raise Wrong(f"{name} is a file")
    if _within_pictures(session, place):
        raise Wrong(f"{name} lies within the pictures, where nothing is ever written", "name a folder outside of them")
    return name


def _output_outcome(session: Session) -> Sequence[str]:
    place = Path(str(session.answers["output"])).expanduser()
    saved = sorted(place.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    return (f"{saved[-1].name} lies there: the run goes on from it",) if saved else ()


def _every(session: Session) -> int:
    """The interval that there is; of a short run its length."""
    interval = int(session.option(EVERY))
    return interval if session.goes_on else min(interval, total_steps(session))


def _disk(session: Session) -> Sequence[str]:
    config, kind = session.draft(), KINDS[session.option("model_type")]
    each = checkpoint_bytes(result_bytes(session), kind.copies, config[Optimizer].optimizer)
    most = at_once(config[Saving], -(-total_steps(session) // config[Saving].checkpoint_step_interval), 0)
    free = disk_free(Path(str(session.answers["output"])).expanduser())
    count = f"{most} checkpoint{'s' * (most != 1)}"
    return (f"{count} of {_gb(each)}: {_gb(most * each)} of {_gb(free)} free",)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


PLACE = Question(
    "Where to, and how often to save?",
    (
        Field(
            "output", "Output folder", OPTIONS[OUTPUT].help, _proposal, _output, key=OUTPUT,
            config=lambda _, answer: {OUTPUT: answer}, outcome=_output_outcome, path=True,
        ),
        option("save_every", "Steps between saves", EVERY, proposal=_every),
        option("keep", "Keep how many, 0 for all", KEPT, outcome=_disk),
    ),
)  # fmt: skip
