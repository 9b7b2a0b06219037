"""The run that the configuration describes: whether it could start here, and whether its last checkpoint is whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from simpletuner import plan
from simpletuner.check import Checked
from simpletuner.config import Config
from simpletuner.doctor.diagnosis import Diagnosis
from simpletuner.doctor.room import network_kind, unwritable
from simpletuner.errors import Problem
from simpletuner.machine import Machine, disk_free
from simpletuner.plan import fit
from simpletuner.plan.caches import Cache
from simpletuner.training import manifest, upkeep
from simpletuner.training.options import Training

GIB, GB = 2**30, 1e9
CACHES = {"text": "text cache", "images": "image cache"}


def configuration(checked: Checked | None, missing: Sequence[Problem]) -> Diagnosis:
    """What `validate` says, in one line."""
    problems = checked.problems if checked else missing
    errors = [problem for problem in problems if problem.severity == "error"]
    if not errors and checked is None:
        return Diagnosis("configuration", "none in this folder", "warning", "simpletuner configure", "config")
    if not errors and checked:
        return Diagnosis("configuration", str(checked.config.path or "command line"))
    first = min(errors, key=lambda problem: problem.exit_code)
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    fix = "simpletuner validate" if checked else first.fix
    return Diagnosis("configuration", first.message + more, "fail", fix, first.area)


def folder(config: Config) -> Diagnosis:
    """The output folder: whether it can be written, and where it lies."""
    place = config[Training].output_dir
    if error := unwritable(place):
        return Diagnosis("output folder", error, "fail", "give an output_dir that can be written", "disk")
    kind = network_kind(place)
    where = f", on a network disk ({kind})" if kind else ""
    return Diagnosis("output folder", f"{place}, {disk_free(place) / GB:.1f} GB free{where}")


def start(checked: Checked, machine: Machine) -> Iterator[Diagnosis]:
    """What `plan` says of the datasets, the caches, memory and disk. Brings the datasets' index up to date."""
    made = plan.make(checked, machine, ask=lambda place: "not checked")  # the hub has a line of its own
    told: set[Problem] = set(checked.problems)
    if details := made.details:
        used = sum(health.used for health in details.datasets)
        files = sum(health.found for health in details.datasets)
        yield Diagnosis("datasets", f"{used} of {files} images are used")
        yield from map(_cache, details.caches)
        told |= {*details.fit_problems, *details.disk_problems}
        yield _memory(details.fit, details.fit_problems)
        for volume in details.disk.volumes:
            text = f"about {volume.needed / GB:.1f} of {volume.free / GB:.1f} GB free are needed in {volume.folder}"
            if volume.enough:
                yield Diagnosis("disk", text)
            else:
                yield Diagnosis("disk", text, "fail", "free some space, or lower checkpoints_total_limit", "disk")
    for problem in made.problems:
        if problem.severity == "error" and problem not in told and problem.area != "auth":  # that is the hub's line
            yield Diagnosis("start", problem.message, "fail", problem.fix, problem.area)


def _cache(cache: Cache) -> Diagnosis:
    if cache.present is None:
        return Diagnosis(CACHES[cache.name], f"{cache.needed} needed; how many are there is known after a start")
    stale = f", {cache.stale} stale (simpletuner cache prune)" if cache.stale else ""
    return Diagnosis(CACHES[cache.name], f"{cache.present} of {cache.needed} there{stale}")


def _memory(found: fit.Fit, problems: Sequence[Problem]) -> Diagnosis:
    """The greediest phase against the memory that decides."""
    phase, place = (found.vram.name, "GPU memory") if found.on_gpu else ("the run", "memory")
    available = f" of {found.available / GIB:.1f}" if found.available else ""
    text = f"{phase} needs about {found.needed / GIB:.1f}{available} GiB"
    if not problems:
        return Diagnosis(place, text)
    first = problems[0]
    return Diagnosis(place, f"{text}: {first.message}", "fail" if first.severity == "error" else "warning", first.fix)


def checkpoint(config: Config) -> Diagnosis:
    """The newest checkpoint, each of its files compared with the manifest; older ones only if it is not whole."""
    paths = list(manifest.steps(config[Training].output_dir).values())
    if not paths:
        return Diagnosis("checkpoint", "none yet")
    newest = upkeep.look(paths.pop())
    if newest.valid:
        return Diagnosis("checkpoint", f"{newest.path.name} is whole")
    older = next((path for path in reversed(paths) if not manifest.verify(path)), None)
    text, fix = f"{newest.path.name}: {newest.problems[0]}", "simpletuner checkpoint verify"
    if older is None:
        return Diagnosis("checkpoint", f"{text}; no other is whole", "fail", fix, "disk")
    return Diagnosis("checkpoint", f"{text}; a run goes on from {older.name}", "warning", fix, "disk")
