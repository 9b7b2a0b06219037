"""Questions 2 and 8: which GPUs train, and in which precision the base fits them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simpletuner.config import OPTIONS
from simpletuner.machine import Gpu, Machine
from simpletuner.plan.fit import Fit, fit
from simpletuner.rules.hardware import UNKNOWN, least
from simpletuner.rules.precision import BF16_ONLY
from simpletuner.wizard.questions import Choice, Field, Question, Wrong, choice
from simpletuner.wizard.session import Session

GIB = 2**30
MODE, BASE, COMPUTE, OPTIMIZER = "gpu_mode", "base_model_precision", "mixed_precision", "optimizer"
PLAIN = "torch-adamw"  # trains weights of any precision
COMPUTED = {"bf16": "bf16", "fp16": "fp16", "fp32": "no"}  # precision of all -> that of the computation
PRECISION_HELP = (
    "How the weights of the frozen model are kept. Fewer bytes fit smaller cards. The memory beside each is an "
    "estimate for the size and rank that you chose, for the part of the run that needs most."
)


def gpus(machine: Machine) -> list[str]:
    """What this machine has, for people."""
    lines = [f"{_named(gpu)}, {gpu.free_bytes / GIB:.1f} free" for gpu in machine.gpus]
    if not machine.gpus:
        lines.append(machine.other_gpu or "no GPU: a run takes place on the CPU")
    ram = f"{machine.ram_bytes / GIB:.0f} GiB of RAM, " if machine.ram_bytes else ""
    return [*lines, f"{ram}{machine.cores} cores"]


def _named(gpu: Gpu) -> str:
    return f"GPU {gpu.index}  {gpu.name}, {gpu.total_bytes / GIB:.1f} GiB"


def _modes(session: Session) -> Sequence[Choice]:
    names = {"disabled": "one GPU" if session.machine.has_gpu else "the CPU"}
    several = len(session.machine.gpus) > 1
    offered = session.available(MODE) if several else [("disabled", "")]
    return [Choice(name, names.get(name, line)) for name, line in offered]


def _ids(session: Session, given: Any) -> list[int]:
    found = session.checked("gpu_ids", given) or []
    known = [gpu.index for gpu in session.machine.gpus]
    absent = [number for number in found if number not in known]
    if absent or not found:
        raise Wrong(f"there is no GPU {absent[0]}" if absent else "no GPU is named", f"numbers from 0 to {known[-1]}")
    return found


def _mode_proposal(session: Session) -> str:
    now = session.option(MODE)
    return now if now in [one.value for one in _modes(session)] else "disabled"


GPUS = Question(
    "Which GPUs?",
    (
        choice("gpus", "GPUs", OPTIONS[MODE].help, _modes, _mode_proposal, key=MODE, config=lambda _, a: {MODE: a}),
        Field(
            "gpu_ids",
            "Numbers",
            OPTIONS["gpu_ids"].help,
            lambda session: [gpu.index for gpu in session.machine.gpus],
            _ids,
            applies=lambda session: session.answers.get("gpus") == "manual",
            config=lambda _, answer: {"gpu_ids": answer},
        ),
    ),
    seen=lambda session: gpus(session.machine),
)


# ---- question 8


def precision_values(answer: str) -> Mapping[str, Any]:
    """Options of a precision: of the whole computation, or of a base that is kept in fewer bits."""
    if answer in COMPUTED:
        return {COMPUTE: COMPUTED[answer], BASE: "no_change"}
    return {COMPUTE: "bf16", BASE: answer}


def needed(session: Session, precision: str) -> Fit:
    """The memory of a run in that precision, with the answers so far."""
    survey, _ = session.survey()
    size = int(session.setting("resolution"))
    buckets = survey.buckets if survey and survey.buckets else [(size, size)]
    return fit(session.draft(**precision_values(precision)), session.machine, buckets)


def _known(session: Session) -> list[str]:
    """Precisions that this version has and that the card computes."""
    names = [name for name, _ in session.available(BASE) if name != "no_change"]
    if session.machine.other_gpu:
        return names
    if not session.machine.gpus:
        return ["fp32", "bf16"]
    weakest = min(session.machine.gpus, key=lambda gpu: gpu.capability)
    if weakest.capability == UNKNOWN:
        return names
    able = [name for name in names if weakest.capability >= least(name)]
    return [name for name in able if name != "bf16" or weakest.has_bf16]


def _precisions(session: Session) -> Sequence[Choice]:
    """Those that fit; if none does, the smallest, which says so."""
    found = [(name, needed(session, name)) for name in _known(session)]
    fitting = [(name, one) for name, one in found if one.fits]
    shown = fitting or [min(found, key=lambda pair: pair[1].needed)]
    return [Choice(name, _note(name, one)) for name, one in shown]


def _note(name: str, found: Fit) -> str:
    where = "of VRAM" if found.on_gpu else "of RAM"
    has = f" of {found.available / GIB:.1f}" if found.available else ""
    text = f"about {found.needed / GIB:.1f}{has} GiB {where}"
    if not found.fits:
        return f"{text}: does not fit here"
    slow = name == "bf16" and not found.on_gpu
    return text + (", slow on most CPUs" if slow else "")


def _precision_proposal(session: Session) -> str:
    offered = [one.value for one in _precisions(session)]
    if not session.machine.has_gpu and COMPUTE not in {**session.documents.values, **session.preset.values}:
        return offered[0]
    base, computed = session.option(BASE), session.option(COMPUTE)
    now = next((name for name, value in COMPUTED.items() if value == computed), "bf16")
    now = now if base in ("no_change", now) else base
    return now if now in offered else offered[0]


def _precision_written(session: Session, answer: str) -> Mapping[str, Any]:
    """With another optimizer where the one that there is trains bf16 weights only."""
    optimizer = {**session.documents.values, **session.preset.values}.get(OPTIMIZER, OPTIONS[OPTIMIZER].default)
    swapped = {OPTIMIZER: PLAIN} if optimizer in BF16_ONLY and COMPUTED.get(answer, "bf16") != "bf16" else {}
    return {**precision_values(answer), **swapped}


PRECISION = Question(
    "Which precision?",
    (
        choice(
            "precision", "Precision", PRECISION_HELP, _precisions, _precision_proposal, key=BASE,
            config=_precision_written, outcome=lambda session: (f"optimizer {session.option(OPTIMIZER)}",),
        ),
    ),
)  # fmt: skip
