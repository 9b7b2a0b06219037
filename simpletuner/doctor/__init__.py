"""Looks at this machine and at what a run here would need. Every check gives a line, and says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from simpletuner.check import Checked, on_machine
from simpletuner.doctor import hub, packages, room, runs
from simpletuner.doctor.diagnosis import Diagnosis
from simpletuner.errors import DiskError, Problem
from simpletuner.machine import Machine

__all__ = ["Diagnosis", "examine"]


def examine(
    checked: Checked | None, missing: Sequence[Problem], machine: Machine, *, offline: bool
) -> Iterator[Diagnosis]:
    """One diagnosis after the other, each as soon as it is known.

    checked: the configuration of this folder, or None with `missing` saying why there is none. offline: asks nobody.
    """
    yield packages.python()
    yield from packages.torch(machine)
    yield packages.requirements()
    yield room.ram(machine)
    yield from room.limits()
    yield room.state_folder()
    checked = on_machine(checked, machine) if checked else None
    yield runs.configuration(checked, missing)
    if checked is None or checked.failed:
        yield from hub.endpoint(offline=offline)
        return
    yield from hub.model(checked.config, offline=offline)
    folder = runs.folder(checked.config)
    yield folder
    try:
        yield from runs.start(checked, machine)
    except DiskError as error:  # no place for the index of the datasets
        if folder.state != "fail":  # else that line says it
            problem = error.problems[0]
            yield Diagnosis("datasets", problem.message, "fail", problem.fix, problem.area)
    yield runs.checkpoint(checked.config)
