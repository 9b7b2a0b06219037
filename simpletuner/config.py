"""One checked configuration from defaults, flavour, files, environment and command line; every value knows its origin.

    config, problems = load(files, {"seed": "7"}, os.environ)
    config[Training].seed, config.origins["seed"]      7, "command line"

Later layers win. All problems are found in one pass; nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import simpletuner
from simpletuner import examples, layers, naming, newfile, reading, retired, schema
from simpletuner.adapters.kinds import KINDS
from simpletuner.errors import Problem
from simpletuner.finding import Files, find
from simpletuner.groups import FORMER, GROUPS, OPTIONS
from simpletuner.models.options import Model
from simpletuner.optim.options import Optimizer
from simpletuner.overrides import command_line
from simpletuner.schema import Group, Raw

__all__ = ["FORMER", "GROUPS", "OPTIONS", "Config", "Files", "command_line", "find", "load"]

G = TypeVar("G", bound=Group)


@dataclass(frozen=True)
class Config:
    """All options of a run, frozen. Index it by group class for typed access."""

    groups: Mapping[str, Group]
    origins: Mapping[str, str]  # key -> label; a key that is absent has its default
    path: Path | None = None
    given: frozenset[str] = field(default=frozenset())  # keys that the user set, anywhere
    written: Mapping[str, str] = field(default_factory=dict)  # key -> the former name under which it was given
    veiled: Mapping[str, Any] = field(default_factory=dict)  # key -> the value with its {env:NAME}, which may be secret
    exports: Mapping[str, str] = field(default_factory=dict)  # variables that config.env sets for the trainer
    refused: frozenset[str] = field(default=frozenset())  # keys whose value cannot be used: the default stands for it

    def __getitem__(self, group: type[G]) -> G:
        return self.groups[group.__name__]  # type: ignore[return-value]

    def values(self) -> dict[str, Any]:
        """Every option as plain JSON data, to be shown and stored: what {env:NAME} stood for is not among it."""
        plain = {key: _plain(getattr(group, key)) for group in self.groups.values() for key in type(group).model_fields}
        return plain | dict(self.veiled)

    def applies(self, key: str) -> bool:
        """Whether the option can have an effect: what it depends on has one of the values that it needs."""
        when = OPTIONS[key].when
        if when is None:
            return True
        group = next(group for group in self.groups.values() if when.key in type(group).model_fields)
        return when.holds(getattr(group, when.key))

    def changed(self, **values: Any) -> Config:
        """The same with other values for some options; nothing is checked."""
        groups = {}
        for name, group in self.groups.items():
            own = {key: value for key, value in values.items() if key in type(group).model_fields}
            groups[name] = group.model_copy(update=own) if own else group
        return replace(self, groups=groups)

    def origin(self, key: str) -> str:
        return self.origins.get(key, "default")

    def write(self, path: Path) -> None:
        """The resolved configuration, without secrets; `load` reads it back to equal values."""
        record = {
            "_version": simpletuner.__version__,
            "_source": str(self.path or "command line"),
            "_origins": dict(self.origins),
            "_written": dict(self.written),
            **self.values(),
        }
        newfile.replace(path, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value


def load(
    source: Files | Path | None, overrides: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> tuple[Config, list[Problem]]:
    """(configuration, all findings). With an error among them the configuration is not to be used.

    source: what `find` found, or one file, or None for defaults, environment and overrides alone. overrides: the
    command line, any spelling of keys. A configuration without groups comes back if a file could not be read.
    """
    environ = os.environ if environ is None else environ
    files = source if isinstance(source, Files) else Files(source)
    problems: list[Problem] = []
    beneath = layers.of_file(files.beneath, environ) if files.beneath else layers.FileLayers()
    above = layers.of_file(files.path, environ) if files.path else layers.FileLayers()
    problems += beneath.problems + above.problems
    merged, over = _settled(beneath.layers, problems), _settled(above.layers, problems)
    problems += naming.clashes(merged, over)
    merged |= over
    if files.backend != "cmd":
        merged |= _settled(layers.of_environment(environ, files.backend, problems), problems)
    command = {reading.canonical_key(k): Raw(v, "command line") for k, v in overrides.items()}
    merged |= _settled([list(command.items())], problems)
    if beneath.failed or above.failed:
        return Config({}, {}, files.path), problems
    exports = beneath.exports | above.exports
    veiled = _substitute_all(merged, {**exports, **environ}, problems)
    _name_warmup(merged, problems)
    refused = _refused(problems)  # before the features to come, whose values are kept
    flavour = layers.of_flavour(merged, problems)
    raw = flavour | merged
    groups, found = schema.parse(GROUPS, raw)
    problems += found
    config = Config(groups, {}, files.path, veiled=veiled, refused=refused | _refused(found))
    config = _labelled(config, raw, above.carried, set(command))
    config = _absolute(_filled(replace(config, exports=exports)))
    return config, problems + _to_come(config, flavour)


def _refused(problems: list[Problem]) -> frozenset[str]:
    """The keys that have an error of their own."""
    return frozenset(p.keys[0] for p in problems if p.severity == "error" and len(p.keys) == 1)


def _settled(pairs: list[layers.Pairs], problems: list[Problem]) -> dict[str, Raw]:
    merged: dict[str, Raw] = {}
    for layer in pairs:
        merged |= naming.settle(layer, problems)
    return merged


def _substitute_all(merged: dict[str, Raw], environ: Mapping[str, str], problems: list[Problem]) -> dict[str, Any]:
    """Replaces {env:NAME} in all values. Returns those in which it stood as they were, except for paths."""
    veiled = {}
    for key, raw in merged.items():
        value = _substitute(raw.value, environ, raw.origin, problems)
        if value != raw.value and OPTIONS[key].kind != "path":
            veiled[key] = raw.value
        merged[key] = replace(raw, value=value)
    return veiled


def _substitute(value: Any, environ: Mapping[str, str], where: str, problems: list[Problem]) -> Any:
    """`value` with {env:NAME} replaced in texts, at any depth."""
    if isinstance(value, str):
        for name in re.findall(r"\{env:([A-Za-z_][A-Za-z0-9_]*)\}", value):
            if name not in environ:
                message = f"the environment variable {name} is not set"
                missing = Problem(message, where=where, fix=f"export {name}=...")
                problems += [] if missing in problems else [missing]
            value = value.replace(f"{{env:{name}}}", environ.get(name, ""))
        return value
    if isinstance(value, list):
        return [_substitute(v, environ, where, problems) for v in value]
    if isinstance(value, dict):
        return {k: _substitute(v, environ, where, problems) for k, v in value.items()}
    return value


def _labelled(config: Config, raw: Mapping[str, Raw], carried: Mapping[str, Any], command: set[str]) -> Config:
    """With the label of each value; a value of a resolved file keeps the one that it had when it was resolved."""
    said = {name: carried[name] if isinstance(carried.get(name), dict) else {} for name in ("_origins", "_written")}
    origins: dict[str, str] = {}
    written: dict[str, str] = {}
    for key, one in raw.items():
        resolved = bool(said["_origins"]) and key not in command and not one.origin.startswith("env ")
        origins[key] = str(said["_origins"].get(key, "default")) if resolved else one.origin
        former = str(said["_written"].get(key, "")) if resolved else one.written
        written |= {key: former} if former else {}
    given = frozenset(key for key, o in origins.items() if o != "default" and not o.startswith("flavour "))
    path = Path(str(carried["_source"])) if "_source" in carried else config.path
    origins = {key: label for key, label in origins.items() if label != "default"}
    return replace(config, origins=origins, given=given, path=path, written=written)


def _name_warmup(merged: dict[str, Raw], problems: list[Problem]) -> None:
    """A constant rate with a warm-up goes by its own name, whichever layers the two came from."""
    scheduler, warmup = merged.get("lr_scheduler"), merged.get("lr_warmup_steps")
    if scheduler and warmup and (notice := retired.with_warmup(scheduler.value, warmup.value, scheduler.origin)):
        merged["lr_scheduler"] = replace(scheduler, value="constant_with_warmup")
        problems.append(notice)


def _to_come(config: Config, flavour: Mapping[str, Raw]) -> list[Problem]:
    """A finding for every feature of a later version that is asked for.

    What has no effect anyway is left to the rules; what only shapes such a feature is not reported beside it.
    """
    values = replace(config, veiled={}).values()
    found: dict[str, Problem] = {}
    for key in config.origins:
        default = flavour[key].value if key in flavour else _plain(OPTIONS[key].default)
        if key in config.given and (finding := retired.value_to_come(key, values[key], default, config.origin(key))):
            found[key] = finding
    refused = {key for key, finding in found.items() if finding.severity == "error"}
    return [
        finding
        for key, finding in found.items()
        if config.applies(key) and not ((when := OPTIONS[key].when) and when.key in refused)
    ]


def _filled(config: Config) -> Config:
    """Defaults that depend on another option."""
    groups = dict(config.groups)
    model, optimizer = groups.get("Model"), groups.get("Optimizer")
    if isinstance(model, Model) and isinstance(optimizer, Optimizer) and optimizer.learning_rate is None:
        rate = KINDS[model.model_type].rate
        groups["Optimizer"] = optimizer.model_copy(update={"learning_rate": rate})
    return replace(config, groups=groups)


def _absolute(config: Config) -> Config:
    """Relative paths start at the working directory; the resolved configuration holds absolute ones."""
    groups = dict(config.groups)
    for name, group in groups.items():
        changes: dict[str, Any] = {}
        for key in type(group).model_fields:
            if OPTIONS[key].kind == "path" and (value := getattr(group, key)):
                text = os.path.expanduser(examples.resolve(str(value)))
                if "{" not in text:
                    changes[key] = type(value)(os.path.abspath(text))
        groups[name] = group.model_copy(update=changes)
    return replace(config, groups=groups)
