"""One checked configuration from defaults, flavour, file, environment and command line; every value knows its origin.

    config, problems = load(path, {"seed": "7"}, os.environ)
    config[Training].seed, config.origins["seed"]      7, "command line"

Later layers win. All problems are found in one pass; nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import simpletuner
from simpletuner import examples, reading, retired, schema
from simpletuner.adapters.options import Adapter
from simpletuner.data.options import Data
from simpletuner.diffusion.options import Objective
from simpletuner.errors import Problem
from simpletuner.memory.options import Memory
from simpletuner.models import families
from simpletuner.models.options import Model, ModelMemory
from simpletuner.optim.options import Optimizer
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
SEARCHED = ("config.json", "config/config.json")
ENV_PREFIX = "SIMPLETUNER_"
LORA_RATE = 1e-4  # what a LoRA learns well at; LoKr and full training will have their own

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

    def origin(self, key: str) -> str:
        return self.origins.get(key, "default")

    def write(self, path: Path) -> None:
        """The resolved configuration, without secrets; `load` reads it back to equal values."""
        record = {"_version": simpletuner.__version__, "_origins": dict(self.origins), **self.values()}
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
    if given:
        tried = [Path(given) / "config.json" if Path(given).is_dir() else Path(given)]
    elif name := env or environ.get("SIMPLETUNER_ENVIRONMENT") or environ.get("SIMPLETUNER_ENV") or _shell_env(environ):
        home = environ.get("SIMPLETUNER_CONFIG_DIR")
        folders = [
            Path(name),
            Path("config") / name,
            Path.home() / "config" / name,
            *([Path(home) / name] if home else []),
        ]
        if name == "default":
            folders.append(Path("config"))
        tried = [folder / "config.json" for folder in folders]
    elif path := environ.get("CONFIG_PATH"):
        candidate = Path(path)
        tried = [
            candidate / "config.json" if candidate.is_dir() else candidate if candidate.suffix else Path(path + ".json")
        ]
    for path in tried or [Path(p) for p in SEARCHED]:
        if path.is_file():
            return path, []
    if not tried:
        return None, []
    fix = "simpletuner configure"
    if Path("config/config.json.example").exists():
        fix = "cp config/config.json.example config/config.json"
    return None, [Problem("no configuration found", where="tried " + ", ".join(str(p) for p in tried), fix=fix)]


def _shell_env(environ: Mapping[str, str]) -> str | None:
    """ENV names an environment, unless a shell put a start-up file there."""
    name = environ.get("ENV")
    return None if not name or "/" in name or Path(name).is_file() else name


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


def _env_layer(environ: Mapping[str, str]) -> dict[str, Raw]:
    known = set(OPTIONS) | set(FORMER) | set(retired.NOT_YET)
    keys = {name: name[len(ENV_PREFIX) :].lower() for name in environ if name.startswith(ENV_PREFIX)}
    return {key: Raw(environ[name], f"env {name}") for name, key in keys.items() if key in known}


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
    family = families()[str(OPTIONS["model_family"].default)]
    flavour = family.flavours.get(wanted.lower())
    if flavour is None:
        return {}  # the parser names it
    if flavour.later:
        problems.append(
            Problem(
                f"model_flavour={wanted} is not yet available: {flavour.later}",
                keys=("model_flavour",),
                fix="use krea, dev or nano",
            )
        )
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
    for layer in (in_file, _env_layer(environ), command):
        merged |= _settle(layer, problems)
    merged = {k: Raw(_substitute(r.value, environ, r.origin, problems), r.origin) for k, r in merged.items()}
    given = frozenset(key for key in merged if carried.get(key, "") != "default")
    raw = _flavour_layer(merged, problems) | merged
    groups, found = schema.parse(GROUPS, raw)
    problems += found
    origins = {key: _relabel(key, r.origin, carried, command) for key, r in raw.items()}
    config = Config(groups, {k: o for k, o in origins.items() if o != "default"}, path, len(command), given)
    return _absolute(_filled(config)), problems


def _filled(config: Config) -> Config:
    """Defaults that depend on another option."""
    groups = dict(config.groups)
    optimizer = groups.get("Optimizer")
    if isinstance(optimizer, Optimizer) and optimizer.learning_rate is None:
        groups["Optimizer"] = optimizer.model_copy(update={"learning_rate": LORA_RATE})
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


def command_line(words: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """Options from words: key=value, --key value, --key=value, --flag, --no-flag. Text only; `load` converts."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        key = reading.canonical_key(name)
        if not word.startswith("--") and not equals:
            problems.append(
                Problem(f'"{word}" is not an option', where="command line", fix="write key=value or --key value")
            )
        elif equals:
            values[key] = value
        elif key.startswith("no_") and key not in OPTIONS and OPTIONS.get(key[3:]) is not None:
            values[key[3:]] = False
        elif rest and not (rest[0].startswith("--") or "=" in rest[0] and rest[0].partition("=")[0] in OPTIONS):
            values[key] = rest.pop(0)
        elif key in OPTIONS and OPTIONS[key].kind != "bool":
            problems.append(Problem(f"{word} needs a value", where="command line", keys=(key,), fix=OPTIONS[key].help))
        else:
            values[key] = True
    return values, problems
