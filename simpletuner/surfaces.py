"""How an `Option` looks on each surface: help text, docs/options.md, JSON schema for editors, ledger line. No surface reads the classes."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from simpletuner.schema import Option

WORDS = {
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "text": "text",
    "path": "path",
    "list": "list",
    "object": "object",
}
JSON_TYPES = {
    "bool": "boolean",
    "int": "integer",
    "float": "number",
    "text": "string",
    "path": "string",
    "choice": "string",
    "list": "array",
    "object": "object",
}


def shown(value: Any) -> str:
    """A default as people would write it in a config."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "none"
    return str(value) if str(value) else '""'


def by_group(options: Iterable[Option]) -> dict[str, list[Option]]:
    """Options under the title of their panel; groups of one title are joined."""
    panels: dict[str, list[Option]] = {}
    for option in options:
        panels.setdefault(option.group, []).append(option)
    return panels


def kind(option: Option) -> str:
    """What may be written: the choices, or the type with its bounds."""
    if option.choices:
        return "|".join(name for name, _ in option.choices)
    return WORDS[option.kind] + (f" {option.bounds}" if option.bounds else "")


def help_text(
    options: Iterable[Option], everything: bool, defaults: Mapping[str, Any] | None = None, width: int | None = None
) -> str:
    """The option panels of `train --help`; expert options only if `everything`. `defaults`: those of a flavour."""
    width = max(40, min(120, width or shutil.get_terminal_size().columns))
    lines: list[str] = []
    for title, members in by_group(options).items():
        chosen = [o for o in members if everything or o.level != "expert"]
        if not chosen:
            continue
        lines += ["", f"{title}:"]
        for option in chosen:
            default = shown((defaults or {}).get(option.key, option.default))
            unit = f" {option.unit}" if option.unit else ""
            lines += textwrap.wrap(
                f"{option.flag} {kind(option)}{unit} [default: {default}]",
                width,
                initial_indent="  ",
                subsequent_indent="      ",
                break_on_hyphens=False,
            )
            lines += textwrap.wrap(option.help, width, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def long_help(option: Option) -> str:
    """Everything known about one option, for `simpletuner help NAME`."""
    lines = [f"{option.key}   ({option.group}, {option.level})", "", option.help, ""]
    lines += [f"  {name:<16} {line}".rstrip() for name, line in option.choices] or [f"  {kind(option)}"]
    lines.append(f"  default: {shown(option.default)}" + (f" {option.unit}" if option.unit else ""))
    if option.when:
        lines.append(f"  has an effect only with {option.when}")
    if option.former:
        lines.append(f"  formerly: {', '.join(option.former)}")
    return "\n".join(lines)


def markdown(options: Iterable[Option]) -> str:
    """docs/options.md."""
    lines = [
        "# Options",
        "",
        "Generated from the program (`python -m simpletuner.surfaces`); a test compares. ★ is shown by every help, ◦ only by `--help-all`.",
        "",
    ]
    for title, members in by_group(options).items():
        lines += [f"## {title}", "", "| Name | Values | Default | Meaning |", "|---|---|---|---|"]
        for option in members:
            mark = {"basic": "★ ", "expert": "◦ "}.get(option.level, "")
            values = kind(option).replace("|", " · ") + (f", {option.unit}" if option.unit else "")
            help = option.help + (f" Only with `{option.when}`.".replace("|", " or ") if option.when else "")
            former = f" Formerly {', '.join(f'`{name}`' for name in option.former)}." if option.former else ""
            lines.append(f"| {mark}`{option.key}` | {values} | {shown(option.default)} | {help}{former} |")
        lines.append("")
    return "\n".join(lines)


def json_schema(options: Iterable[Option]) -> dict[str, Any]:
    """A JSON schema that lets editors complete config.json, with and without leading dashes."""
    properties: dict[str, Any] = {}
    for option in options:
        entry: dict[str, Any] = {"description": option.help, "title": option.group}
        if option.choices:
            entry["enum"] = [name for name, _ in option.choices]
        else:
            # Values may also be written as texts, as in files of the original.
            entry["type"] = [
                JSON_TYPES[option.kind],
                *([] if JSON_TYPES[option.kind] == "string" else ["string"]),
                "null",
            ]
        if option.low is not None:
            entry["exclusiveMinimum" if option.low_open else "minimum"] = option.low
        if option.high is not None:
            entry["exclusiveMaximum" if option.high_open else "maximum"] = option.high
        entry["default"] = str(option.default) if isinstance(option.default, Path) else option.default
        properties[option.key] = entry
        properties[option.flag] = {"$ref": f"#/properties/{option.key}"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "SimpleTuner configuration",
        "type": "object",
        "properties": properties,
    }


def ledger(options: Iterable[Option]) -> str:
    """tests/options.txt: one line per option, so that a change to the surface is a visible one-line diff."""
    return "".join(f"{o.key}\t{o.kind}\t{shown(o.default)}\t{o.level}\n" for o in sorted(options, key=lambda o: o.key))


def write_all(root: Path, options: list[Option]) -> None:
    """Writes the generated files of the repository at `root`."""
    (root / "docs").mkdir(exist_ok=True)
    (root / "docs/options.md").write_text(markdown(options), "utf-8")
    (root / "tests/options.txt").write_text(ledger(options), "utf-8")
    (root / "simpletuner/config.schema.json").write_text(
        json.dumps(json_schema(options), indent=2, ensure_ascii=False) + "\n", "utf-8"
    )
