"""One checked configuration from defaults, flavour, file, environment and command line; every value knows its origin.

    config, problems = load(path, {"seed": "7"}, os.environ)
    config[Training].seed, config.origins["seed"]      7, "command line"

Later layers win. All problems are found in one pass; nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import simpletuner
from simpletuner import examples, reading, retired, schema
from simpletuner.adapters.kinds import KINDS
from simpletuner.adapters.options import Adapter
from simpletuner.data.options import Data
from simpletuner.diffusion.options import Objective
from simpletuner.errors import Problem
from simpletuner.memory.options import Memory
from simpletuner.models import families
from simpletuner.models.options import Model, ModelMemory
from simpletuner.optim.options import Optimizer
from simpletuner.registry import nearest
from simpletuner.schema import Group, Option, Raw
from simpletuner.tracking.options import Logging
from simpletuner.training.options import Saving, Speed, Training
from simpletuner.validation.options import Validation

# In the order of the help's panels.
GROUPS: tuple[type[Group], ...] = (
    Model, Data, Training, Adapter, Objective, *(group for family in families().values() for group in family.options),
    Optimizer, Memory, ModelMemory, Speed, Validation, Saving, Logging,
)  # fmt: skip
OPTIONS: dict[str, Option] = schema.options(GROUPS)
FORMER = retired.FORMER | {former: key for key, option in OPTIONS.items() for former in option.former}
PATHS = (
    "output_dir",
    "data_backend_config",
    "user_prompt_library",
    "cache_dir_text",
    "cache_dir_vae",
    "logging_dir",
    "cache_dir",
)
NAMES = ("config.json", "config.toml", "config.env")  # the first that is there; so far only the first kind is read
SEARCHED = (*NAMES, *(f"config/{name}" for name in NAMES))
OTHER_BACKENDS = {"toml", "env", "cmd"}
SETTINGS = {  # variables of the program itself, SIMPLETUNER_<NAME>, that are no options of a run
    "env", "environment", "config_dir", "config_backend", "state_dir", "web_ui_config", "log_level", "debug", "job_id",
    "host", "port", "process_group_timeout_seconds",
}  # fmt: skip
ENV_PREFIX = "SIMPLETUNER_"
EXTRA_ARGS = "TRAINER_EXTRA_ARGS"

G = TypeVar("G", bound=Group)


@dataclass(frozen=True)
class Config:
    """All options of a run, frozen. Index it by group class for typed access."""

    groups: Mapping[str, Group]
    origins: Mapping[str, str]  # key -> label; a key that is absent has its default
    path: Path | None = None
    num_overrides: int = 0
    given: frozenset[str] = field(default=frozenset())  # keys that the user set, anywhere

    def __getitem__(self, group: type[G]) -> G:
        return self.groups[group.__name__]  # type: ignore[return-value]

    def values(self) -> dict[str, Any]:
        """Every option as plain JSON data."""
        return {key: _plain(getattr(group, key)) for group in self.groups.values() for key in type(group).model_fields}

    def applies(self, key: str) -> bool:
        """Whether the option can have an effect: what it depends on has one of the values that it needs."""
        when = OPTIONS[key].when
        if when is None:
            return True
        group = next(group for group in self.groups.values() if when.key in type(group).model_fields)
        return getattr(group, when.key) in when.values

    def origin(self, key: str) -> str:
        return self.origins.get(key, "default")

    def write(self, path: Path) -> None:
        """The resolved configuration, without secrets; `load` reads it back to equal values."""
        record = {
            "_version": simpletuner.__version__,
            "_source": str(self.path or "command line"),
            "_origins": dict(self.origins),
            **self.values(),
        }
        partial = path.with_name(path.name + f".tmp-{os.getpid()}")
        partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")
        os.replace(partial, path)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value


def find(given: str | None, env: str | None, environ: Mapping[str, str]) -> tuple[Path | None, list[Problem]]:
    """The configuration file to use (config.md section 2), or None if nothing was asked for and nothing lies here."""
    tried: list[Path] = []
    problems = _backend(environ)
    if given:
        tried = _in(Path(given)) if Path(given).is_dir() else [Path(given)]
    elif name := env or _named(environ, problems):
        homes = [Path(), Path("config"), Path.home() / "config"]
        homes += [Path(environ["SIMPLETUNER_CONFIG_DIR"])] if environ.get("SIMPLETUNER_CONFIG_DIR") else []
        tried = [file for home in homes for file in _in(home / name)]
        tried += _in(Path("config")) if name == "default" else []
        tried += _in(examples.EXAMPLES[name].folder) if name in examples.EXAMPLES else []
    elif place := environ.get("CONFIG_PATH"):
        tried = _in(Path(place)) if Path(place).is_dir() else [Path(place if Path(place).suffix else place + ".json")]
    for path in tried or [Path(p) for p in SEARCHED]:
        if path.is_file():
            others = [str(p) for p in _in(path.parent) if p != path and p.is_file() and path.name == "config.json"]
            problems += [Problem(f"{path} is used, and not {o}", severity="notice", where=o) for o in others]
            return path, problems
    if tried:
        where = "tried " + ", ".join(str(p) for p in tried)
        problems.append(Problem("no configuration found", where=where, fix=first_step()))
    return None, problems


def _in(folder: Path) -> list[Path]:
    return [folder / name for name in NAMES]


def first_step() -> str:
    """What to do where there is no configuration."""
    if Path("config/config.json.example").exists():
        return "cp config/config.json.example config/config.json"
    return "give --config PATH, or start from an example: simpletuner examples copy nano"


def _backend(environ: Mapping[str, str]) -> list[Problem]:
    """An error if another kind of configuration is asked for than the one that is read: no other is used instead."""
    name = next((n for n in ("SIMPLETUNER_CONFIG_BACKEND", "CONFIG_BACKEND", "CONFIG_TYPE") if environ.get(n)), "")
    if environ.get(name, "").lower() not in OTHER_BACKENDS:
        return []
    message = f"{name}={environ[name]} is not yet available in this version"
    return [Problem(message, where=f"env {name}", fix=f"unset {name}, and write config.json")]


def _named(environ: Mapping[str, str], problems: list[Problem]) -> str | None:
    """The environment that variables name. ENV may also hold a shell's start-up file, which is none."""
    if name := environ.get("SIMPLETUNER_ENVIRONMENT") or environ.get("SIMPLETUNER_ENV"):
        return name
    name = environ.get("ENV")
    if name and ("/" in name or Path(name).is_file()):
        problems.append(Problem(f"ENV={name} is a file, not an environment", severity="notice", where="env ENV"))
        return None
    return name or None


def _substitute(value: Any, environ: Mapping[str, str], where: str, problems: list[Problem]) -> Any:
    """`value` with {env:NAME} replaced in texts, at any depth."""
    if isinstance(value, str):
        for name in re.findall(r"\{env:([A-Za-z_][A-Za-z0-9_]*)\}", value):
            if name not in environ:
                problems.append(
                    Problem(f"the environment variable {name} is not set", where=where, fix=f"export {name}=...")
                )
            value = value.replace(f"{{env:{name}}}", environ.get(name, ""))
        return value
    if isinstance(value, list):
        return [_substitute(v, environ, where, problems) for v in value]
    if isinstance(value, dict):
        return {k: _substitute(v, environ, where, problems) for k, v in value.items()}
    return value


def _file_layer(path: Path, problems: list[Problem]) -> tuple[dict[str, Raw], dict[str, str]]:
    """(values of the file, origins that a resolved configuration carries along)."""
    if path.suffix in (".toml", ".env"):
        problems.append(
            Problem(f"{path.suffix} configurations are not yet read", where=str(path), fix="write config.json")
        )
        return {}, {}
    document = reading.read(path)
    problems += document.problems
    if document.value is None:
        if not document.failed:
            problems.append(Problem("the file holds null", where=str(path), fix="write a JSON object of options"))
        return {}, {}
    if not isinstance(document.value, dict):
        problems.append(Problem("expected an object of options", where=document.where(), fix="wrap the options in { }"))
        return {}, {}
    carried = document.value.get("_origins")
    layer = {reading.canonical_key(k): Raw(v, document.where(k)) for k, v in document.value.items()}
    return layer, carried if isinstance(carried, dict) else {}


def _env_layer(environ: Mapping[str, str], problems: list[Problem]) -> dict[str, Raw]:
    """SIMPLETUNER_<OPTION> for any option, and over them TRAINER_EXTRA_ARGS, written as on the command line."""
    known = set(OPTIONS) | set(FORMER) | set(retired.NOT_YET)
    layer: dict[str, Raw] = {}
    for name in environ:
        key = name[len(ENV_PREFIX) :].lower() if name.startswith(ENV_PREFIX) else ""
        if key in known:
            layer[key] = Raw(environ[name], f"env {name}")
        elif key not in SETTINGS and (near := nearest(key, known, limit=1)):
            fix = f"did you mean {ENV_PREFIX}{near[0].upper()}?"
            problems.append(Problem(f"{name} names no option", severity="warning", where=f"env {name}", fix=fix))
    return layer | _extra_args(environ.get(EXTRA_ARGS, ""), problems)


def _extra_args(text: str, problems: list[Problem]) -> dict[str, Raw]:
    """Split like a shell line; a backslash joins lines, and a line that starts with # is a comment."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    try:
        words = shlex.split("\n".join(lines).replace("\\\n", " "))
    except ValueError as error:
        problems.append(Problem(f"{EXTRA_ARGS}: {error}", where=f"env {EXTRA_ARGS}", fix="close the quotes"))
        return {}
    values, found = command_line(words, f"env {EXTRA_ARGS}")
    problems += found
    return {key: Raw(value, f"env {EXTRA_ARGS}") for key, value in values.items()}


def _settle(layer: Mapping[str, Raw], problems: list[Problem]) -> dict[str, Raw]:
    """The layer under present names; findings about every key that is no option here."""
    settled: dict[str, Raw] = {}
    for written, raw in layer.items():
        if schema.is_unset(written, raw.value):
            known = written in OPTIONS or written in FORMER or retired.settle(written, None, "")[0]
            if not known:
                problems.append(schema.unknown_key(written, OPTIONS, raw.origin))
            continue
        if written in FORMER and written not in retired.FORMER:
            key, value = FORMER[written], raw.value
            notice: Problem | None = Problem(
                f"{written} is now called {key}", severity="notice", where=raw.origin, keys=(key,)
            )
        else:
            key, value, notice = retired.rename(written, raw.value, raw.origin)
        if notice:
            problems.append(notice)
        if key in OPTIONS:
            if later := retired.value_to_come(key, value, raw.origin):
                problems.append(later)
            elif key in settled and str(settled[key].value) != str(value):
                where = f"{settled[key].origin} and {raw.origin}"
                message = f"{key} is given twice with different values, once as {written}"
                problems.append(Problem(message, where=where, fix="keep one", keys=(key,)))
            else:
                settled[key] = Raw(value, raw.origin)
            continue
        known, finding = retired.settle(key, value, raw.origin)
        problems += [finding] if finding else []
        if not known:
            problems.append(schema.unknown_key(key, [*OPTIONS, *retired.NOT_YET], raw.origin))
    return settled


def _flavour_layer(raw: Mapping[str, Raw], problems: list[Problem]) -> dict[str, Raw]:
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


def load(
    path: Path | None, overrides: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> tuple[Config, list[Problem]]:
    """(configuration, all findings). With an error among them the configuration is not to be used.

    path: config.json, or None for defaults and overrides alone. overrides: the command line, any spelling of keys.
    """
    environ = os.environ if environ is None else environ
    problems: list[Problem] = []
    in_file, carried = _file_layer(path, problems) if path else ({}, {})
    command = {reading.canonical_key(k): Raw(v, "command line") for k, v in overrides.items()}
    merged: dict[str, Raw] = {}
    for layer in (in_file, _env_layer(environ, problems), command):
        merged |= _settle(layer, problems)
    merged = {k: Raw(_substitute(r.value, environ, r.origin, problems), r.origin) for k, r in merged.items()}
    raw = _flavour_layer(merged, problems) | merged
    groups, found = schema.parse(GROUPS, raw)
    problems += found
    origins = {key: _relabel(key, r.origin, carried, command) for key, r in raw.items()}
    given = frozenset(key for key, o in origins.items() if o != "default" and not o.startswith("flavour "))
    source = Path(str(in_file["_source"].value)) if "_source" in in_file else path  # of a resolved configuration
    config = Config(groups, {k: o for k, o in origins.items() if o != "default"}, source, len(command), given)
    return _absolute(_filled(config)), problems


def _filled(config: Config) -> Config:
    """Defaults that depend on another option."""
    groups = dict(config.groups)
    model, optimizer = groups.get("Model"), groups.get("Optimizer")
    if isinstance(model, Model) and isinstance(optimizer, Optimizer) and optimizer.learning_rate is None:
        rate = KINDS[model.model_type].rate
        groups["Optimizer"] = optimizer.model_copy(update={"learning_rate": rate})
    return replace(config, groups=groups)


def _relabel(key: str, origin: str, carried: Mapping[str, str], command: Mapping[str, Raw]) -> str:
    """A value of a resolved file keeps the label that it had when it was resolved."""
    return origin if key in command or origin.startswith("env ") or not carried else carried.get(key, "default")


def _absolute(config: Config) -> Config:
    """Relative paths start at the working directory; the resolved configuration holds absolute ones."""
    groups = dict(config.groups)
    for name, group in groups.items():
        changes: dict[str, Any] = {}
        for key in PATHS:
            if key in type(group).model_fields and (value := getattr(group, key)):
                text = os.path.expanduser(examples.resolve(str(value)))
                if "{" not in text:
                    changes[key] = type(value)(os.path.abspath(text))
        groups[name] = group.model_copy(update=changes)
    return replace(config, groups=groups)


def command_line(words: Sequence[str], where: str = "command line") -> tuple[dict[str, Any], list[Problem]]:
    """Options from words: key=value, --key value, --key=value, --flag, --no-flag. Text only; `load` converts."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        key = reading.canonical_key(name)
        if not word.startswith("--") and not equals:
            problems.append(Problem(f'"{word}" is not an option', where=where, fix="write key=value or --key value"))
        elif equals:
            values[key] = value
        elif key.startswith("no_") and key not in OPTIONS and OPTIONS.get(key[3:]) is not None:
            values[key[3:]] = False
        elif rest and _is_value(rest[0], OPTIONS.get(FORMER.get(key, key))):
            values[key] = rest.pop(0)
        elif key in OPTIONS and OPTIONS[key].kind != "bool":
            problems.append(Problem(f"{word} needs a value", where=where, keys=(key,), fix=OPTIONS[key].help))
        else:
            values[key] = True
    return values, problems


def _is_value(word: str, option: Option | None) -> bool:
    """Whether the word behind --key belongs to it, and is not an option of its own."""
    if word.startswith("--"):
        return False
    if option is not None and option.kind == "bool":
        return word.strip().lower() in schema.TRUE | schema.FALSE
    return reading.canonical_key(word.partition("=")[0]) not in OPTIONS or "=" not in word
