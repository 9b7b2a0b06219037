"""What each source of a configuration says: a file, the environment, the flavour. Keys are as written there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simpletuner import envfile, finding, naming, reading, tomlfile
from simpletuner.envfile import EXTRA_ARGS, Assignment
from simpletuner.errors import Problem
from simpletuner.groups import FORMER, OPTIONS
from simpletuner.models import families
from simpletuner.overrides import extra_args
from simpletuner.registry import nearest, one_slip_apart
from simpletuner.schema import TRUE, Raw

SETTINGS = {  # variables of the program itself, SIMPLETUNER_<NAME>, that are no options of a run
    "env", "environment", "config_dir", "config_backend", "state_dir", "web_ui_config", "log_level", "debug", "job_id",
    "host", "port", "process_group_timeout_seconds",
}  # fmt: skip
ENV_PREFIX = "SIMPLETUNER_"
Pairs = list[tuple[str, Raw]]


@dataclass
class FileLayers:
    """What a file says. `layers`: the lowest first, keys as written; a later one wins."""

    layers: list[Pairs] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    exports: dict[str, str] = field(default_factory=dict)  # names of config.env that are meant for the trainer process
    carried: dict[str, Any] = field(default_factory=dict)  # what a resolved configuration says about its own values
    failed: bool = False  # the file could not be read, so that nothing can be said about what it leaves out


def of_file(path: Path, environ: Mapping[str, str]) -> FileLayers:
    """The layers of config.json, config.toml or config.env."""
    kind = finding.kind(path)
    if kind == "env":
        return _of_env_file(path, environ)
    document = tomlfile.read(path) if kind == "toml" else reading.read(path)
    found = FileLayers(problems=list(document.problems))
    if isinstance(document.value, dict):
        values = {reading.canonical_key(key): Raw(v, document.where(key)) for key, v in document.value.items()}
        found.layers = [list(values.items())]
        found.carried = {key: document.value[key] for key in ("_origins", "_written", "_source") if key in values}
        return found
    found.failed = True
    if document.value is not None:
        fix = "wrap the options in { }"
        found.problems.append(Problem("expected an object of options", where=document.where(), fix=fix))
    elif not document.failed:
        found.problems.append(Problem("the file holds null", where=str(path), fix="write a JSON object of options"))
    return found


def _of_env_file(path: Path, environ: Mapping[str, str]) -> FileLayers:
    file = envfile.read(path, environ)
    found = FileLayers(problems=list(file.problems), failed=file.failed)
    plain: Pairs = []
    extra: dict[str, Pairs] = {}
    for assignment in file.assignments:
        name, value, where = assignment.name, assignment.value, assignment.where
        key = envfile.NAMES.get(name) or name.removeprefix(ENV_PREFIX).lower()
        if name in EXTRA_ARGS:
            values, problems = extra_args(value, name, where)
            extra[name] = [(option, Raw(given, where)) for option, given in values.items()]
            found.problems += problems
        elif name in envfile.FAMILIES:
            pair, said = _family(assignment)
            plain += [pair] if pair else []
            found.problems.append(said)
        elif too_late := _chooser(assignment, path):
            found.problems.append(too_late)
        elif naming.known(key):
            plain.append((key, Raw(value, where, written=name if name in envfile.NAMES else "")))
        else:
            found.problems += _mistyped(assignment, key)
            if name not in environ:
                found.exports[name] = value
    found.layers = [plain, *(extra[name] for name in reversed(EXTRA_ARGS) if name in extra)]
    return found


def _family(assignment: Assignment) -> tuple[tuple[str, Raw] | None, Problem]:
    """What a switch such as FLUX=true says, by which the original once chose the model family."""
    name, where = assignment.name, assignment.where
    on = assignment.value.strip().lower() in TRUE
    if name == "FLUX" and on:
        notice = Problem("FLUX is read as model_family=flux", severity="notice", where=where, keys=("model_family",))
        return ("model_family", Raw("flux", where, written=name)), notice
    if name == "FLUX":
        return None, Problem("FLUX is off, but no other model is trained here", where=where, fix="set it to true")
    if on:
        return None, Problem(f"{name} is for other model families", where=where, fix="remove it")
    return None, Problem(f"{name} is off, and not offered here", severity="notice", where=where)


def _mistyped(assignment: Assignment, key: str) -> list[Problem]:
    """A warning about a name for the trainer that was probably meant as an option."""
    name, prefixed = assignment.name, assignment.name.startswith(ENV_PREFIX)
    options = (*OPTIONS, *FORMER)
    near = nearest(key, (*options, *(bare.lower() for bare in envfile.NAMES)), limit=1)
    alike = bool(near) and (near[0] == key or one_slip_apart(key, near[0]))
    if (prefixed and key in SETTINGS) or not (prefixed or alike):
        return []
    fix = "simpletuner train --help lists the options"
    if near:
        fix = f"did you mean {ENV_PREFIX if prefixed and near[0] in options else ''}{near[0].upper()}?"
    message = f"{name} is no option and is handed to the trainer"
    return [Problem(message, severity="warning", where=assignment.where, fix=fix)]


def _chooser(assignment: Assignment, path: Path) -> Problem | None:
    """The finding about a name that chooses between configurations: in a file it comes too late for that."""
    name, value, where = assignment.name, assignment.value, assignment.where
    if name in finding.BACKEND_VARIABLES:
        fix = "export it in the shell"
        return Problem(f"{name} has no effect in a file", severity="notice", where=where, fix=fix)
    if name not in (*finding.ENVIRONMENT_VARIABLES, finding.PLACE_VARIABLE):
        return None
    if value in ("", path.parent.name) or (value == "default" and path.parent.name in ("", "config")):
        return Problem(f"{name} has no effect in a file", severity="notice", where=where)
    option = "--config" if name == finding.PLACE_VARIABLE else "--env"
    fix = f"give {option} {value}, or export {name} in the shell, and remove it here"
    return Problem(f"{name}={value} chooses no configuration from within a file", where=where, fix=fix)


def of_environment(environ: Mapping[str, str], backend: str, problems: list[Problem]) -> list[Pairs]:
    """Bare names if the backend is env; SIMPLETUNER_<OPTION> for any option; TRAINER_EXTRA_ARGS, as words."""
    bare: Pairs = []
    if backend == "env":
        for name in sorted(envfile.BARE & set(environ)):
            written = name if name in envfile.NAMES else ""
            key = envfile.NAMES.get(name, name.lower())
            bare.append((key, Raw(environ[name], f"env {name}", written)))
    prefixed: Pairs = []
    every = set(OPTIONS) | set(FORMER)
    for name in environ:
        if not name.startswith(ENV_PREFIX):
            continue
        key = name[len(ENV_PREFIX) :].lower()
        if key in every or (key not in SETTINGS and naming.known(key)):
            prefixed.append((key, Raw(environ[name], f"env {name}")))
        elif key not in SETTINGS and (near := nearest(key, every, limit=1)):
            fix = f"did you mean {ENV_PREFIX}{near[0].upper()}?"
            problems.append(Problem(f"{name} names no option", severity="warning", where=f"env {name}", fix=fix))
    name, where = EXTRA_ARGS[0], f"env {EXTRA_ARGS[0]}"
    values, found = extra_args(environ.get(name, ""), name, where)
    problems += found
    return [bare, prefixed, [(key, Raw(value, where)) for key, value in values.items()]]


def of_flavour(raw: Mapping[str, Raw], problems: list[Problem]) -> dict[str, Raw]:
    """The defaults of the flavour that the other layers choose."""
    wanted = str(raw["model_flavour"].value) if "model_flavour" in raw else str(OPTIONS["model_flavour"].default)
    family = families()[str(OPTIONS["model_family"].default)]  # the only one so far
    flavour = family.flavours.get(wanted.lower())
    if flavour is None:
        return {}  # the parser names it
    if flavour.later:
        usable = ", ".join(name for name, other in family.flavours.items() if not other.later)
        message = f"model_flavour={wanted} is not yet available: {flavour.later}"
        where = raw["model_flavour"].origin if "model_flavour" in raw else ""
        problems.append(Problem(message, where=where, keys=("model_flavour",), fix=f"use one of {usable}"))
    return {key: Raw(value, f"flavour {flavour.name}") for key, value in flavour.defaults.items() if key in OPTIONS}
