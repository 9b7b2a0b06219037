"""Which files a configuration is read from: the first that is there of those that were asked for.

files, problems = find(config_path, env, os.environ)
files.path                config/config.json, or None if nothing was asked for and nothing lies here
files.beneath             config/config.env, which is read first
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from simpletuner import envfile, examples
from simpletuner.errors import Problem

NAMES = ("config.json", "config.toml", "config.env")  # the first that is there
SEARCHED = (*NAMES, *(f"config/{name}" for name in NAMES))
BACKENDS = ("json", "toml", "env", "cmd")
BACKEND_VARIABLES = ("SIMPLETUNER_CONFIG_BACKEND", "CONFIG_BACKEND", "CONFIG_TYPE")
ENVIRONMENT_VARIABLES = ("SIMPLETUNER_ENVIRONMENT", "SIMPLETUNER_ENV", "ENV")
PLACE_VARIABLE = "CONFIG_PATH"


@dataclass(frozen=True)
class Files:
    """The files of one configuration. `backend` is the kind that a variable asks for: json, toml, env or cmd."""

    path: Path | None = None
    beneath: Path | None = None
    backend: str = ""

    @property
    def any(self) -> bool:
        """Whether there is a source to read, though it may be the environment or the command line alone."""
        return self.path is not None or bool(self.backend)


@dataclass(frozen=True)
class _Place:
    path: Path
    alone: bool  # named itself, so that what lies beside it does not count


def kind(path: Path) -> str:
    """json, toml or env. A file of any other name is read as JSON."""
    ending = path.suffix.lower() or path.name.lower()
    return ending[1:] if ending in (".toml", ".env") else "json"


def find(given: str | None, env: str | None, environ: Mapping[str, str]) -> tuple[Files, list[Problem]]:
    """The files to use, and what is to be said about the search.

    given: --config, a file or a folder. env: --env, the name of an environment. With an error among the problems
    something was asked for that is not there, and no other configuration may be used instead.
    """
    problems: list[Problem] = []
    backend = _backend(environ, problems)
    if backend == "cmd" and not given and not env:
        return Files(backend=backend), problems
    names = NAMES if backend in ("", "cmd") else (f"config.{backend}",)
    tried = _asked_for(given, env, environ, names, problems)
    places = tried or _in_folders([Path(), Path("config")], names)
    for place in places:
        if _is_there(place.path):
            return _with_neighbours(place, backend, problems), problems
    if backend == "env" and not tried and envfile.BARE & set(environ):
        return Files(backend=backend), problems
    if tried or backend:
        where = "tried " + ", ".join(str(place.path) for place in places)
        problems.append(Problem("no configuration found", where=where, fix=first_step()))
    return Files(), problems


def first_step() -> str:
    """What to do where there is no configuration."""
    if Path("config/config.json.example").exists():
        return "cp config/config.json.example config/config.json"
    return "give --config PATH, or start from an example: simpletuner examples copy nano"


def _asked_for(
    given: str | None, env: str | None, environ: Mapping[str, str], names: tuple[str, ...], problems: list[Problem]
) -> list[_Place]:
    """Where to look, in order; empty if nothing in particular was asked for."""
    if given:
        place = Path(examples.resolve(given))
        return _in_folders([place], names) if place.is_dir() else [_Place(place, True)]
    if name := env or _environment(environ, problems):
        return _of_environment(name, environ, names)
    if value := environ.get(PLACE_VARIABLE):
        place = Path(examples.resolve(value))
        if place.is_dir():
            return _in_folders([place], names)
        return [_Place(place if place.suffix else Path(f"{place}{Path(names[0]).suffix}"), True)]
    return []


def _of_environment(name: str, environ: Mapping[str, str], names: tuple[str, ...]) -> list[_Place]:
    shared = environ.get("SIMPLETUNER_CONFIG_DIR")
    homes = [Path(), Path("config"), Path.home() / "config", *([Path(shared)] if shared else [])]
    folders = [Path(examples.resolve(str(home / name))) for home in homes]
    if name == "default":
        folders += [Path("config"), *([Path(shared)] if shared else [])]
    if name in examples.EXAMPLES:
        folders.append(examples.EXAMPLES[name].folder)
    named = [_Place(Path(name), True)] if Path(name).suffix[1:] in BACKENDS else []
    return named + _in_folders(folders, names)


def _in_folders(folders: Iterable[Path], names: tuple[str, ...]) -> list[_Place]:
    return list(dict.fromkeys(_Place(folder / name, False) for folder in folders for name in names))


def _is_there(path: Path) -> bool:
    """Whether something to read has this name: a file that cannot be read is an error later, and not passed over."""
    return os.path.lexists(path) and not os.path.isdir(path)


def _with_neighbours(place: _Place, backend: str, problems: list[Problem]) -> Files:
    """The file with the config.env beside it beneath it, if the folder was searched and no variable names a kind."""
    path = place.path
    if backend and kind(path) != backend:
        message = f"the backend {backend}, which a variable asks for, is not used: {path} is named"
        problems.append(Problem(message, severity="notice", where=str(path)))
    if place.alone:
        return Files(path, backend=backend if kind(path) == backend else "")
    beneath = None
    for other in (path.with_name(name) for name in NAMES if name != path.name):
        if not _is_there(other):
            continue
        if other.name == "config.env" and not backend:
            beneath = other
            message = f"{other} is read first, and {path} over it"
        else:
            message = f"{path} is used, and not {other}"
        problems.append(Problem(message, severity="notice", where=str(other)))
    return Files(path, beneath, backend)


def _backend(environ: Mapping[str, str], problems: list[Problem]) -> str:
    """The kind of source that the first of the variables names."""
    name = next((name for name in BACKEND_VARIABLES if environ.get(name)), "")
    backend = environ.get(name, "").strip().lower()
    if name and backend not in BACKENDS:
        message = f"{name}={environ[name]} is no kind of configuration"
        problems.append(Problem(message, where=f"env {name}", fix=f"use one of {', '.join(BACKENDS)}, or unset {name}"))
        return ""
    return backend


def _environment(environ: Mapping[str, str], problems: list[Problem]) -> str:
    """The environment that variables name. ENV may also hold a shell's start-up file, which is none."""
    name = next((name for name in ENVIRONMENT_VARIABLES if environ.get(name)), "")
    value = environ.get(name, "")
    if name == "ENV" and ("/" in value or Path(value).is_file()):
        problems.append(Problem(f"ENV={value} is a file, not an environment", severity="notice", where="env ENV"))
        return ""
    return value
