"""How an `Option` looks on each surface: help text, docs/options.md, JSON schema, ledger. None reads the classes."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from simpletuner.option import Option
from simpletuner.retired import NOT_YET, NOT_YET_VALUES

NARROWEST, WIDEST = 40, 120  # columns
EMPTY = '""'
TO_COME = "Not yet available."
WORDS = {
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "text": "text",
    "lines": "text, or a list of lines",
    "path": "path",
    "list": "list",
    "object": "object or path",
}
JSON_TYPES = {  # values may also be written as texts, as in files of the original
    "bool": ["boolean", "string"],
    "int": ["integer", "string"],
    "float": ["number", "string"],
    "text": ["string"],
    "lines": ["string", "array"],
    "path": ["string"],
    "list": ["array", "string"],
    "object": ["object", "array", "string"],
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
    return str(value) if str(value) else EMPTY


def by_group(options: Iterable[Option]) -> dict[str, list[Option]]:
    """Options under the title of their panel; groups of one title are joined."""
    panels: dict[str, list[Option]] = {}
    for option in options:
        panels.setdefault(option.group, []).append(option)
    return panels


def available(option: Option) -> list[str]:
    """The choices that this version has."""
    return [name for name, _ in option.choices if name not in to_come(option)]


def to_come(option: Option) -> set[str]:
    """The choices that a later version brings. None where the whole option is to come."""
    return set() if option.key in NOT_YET else NOT_YET_VALUES.get(option.key, set())


def kind(option: Option, between: str = " | ") -> str:
    """What may be written: the available choices, or the type with its bounds."""
    if option.choices:
        names = between.join(name or EMPTY for name in available(option))
        return f"list of {names}" if option.kind == "list" else names
    return WORDS[option.kind] + (f" {option.bounds}" if option.bounds else "")


def help_text(
    options: Iterable[Option], everything: bool, defaults: Mapping[str, Any] | None = None, width: int | None = None
) -> str:
    """The option panels of `train --help`; expert options only if `everything`. `defaults`: those of a flavour.

    Options of later versions are left out: nobody can use them.
    """
    width = _columns(width)
    lines: list[str] = []
    for title, members in by_group(options).items():
        chosen = [o for o in members if o.key not in NOT_YET and (everything or o.level != "expert")]
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


def _columns(width: int | None) -> int:
    return max(NARROWEST, min(WIDEST, width or shutil.get_terminal_size().columns))


def long_help(option: Option, default: Any = None, width: int | None = None) -> str:
    """Everything known about one option, for `simpletuner help NAME`. `default`: that of a flavour."""
    width = _columns(width)
    lines = [*textwrap.wrap(f"{option.key}   ({option.group}, {option.level})", width), ""]
    lines += [TO_COME, ""] if option.key in NOT_YET else []
    lines += [*textwrap.wrap(option.help, width), ""]
    lines += ["  any of these, as a list:"] if option.choices and option.kind == "list" else []
    later = [(name, line) for name, line in option.choices if name in to_come(option)]
    lines += _listed([choice for choice in option.choices if choice not in later], width)
    lines += ["  not yet available:", *_listed(later, width)] if later else []
    lines += [] if option.choices else [f"  {kind(option)}"]
    value = option.default if default is None else default
    unit = f" {option.unit}" if option.unit else ""
    lines += textwrap.wrap(f"  default: {shown(value)}{unit}", width, subsequent_indent=" " * 6)
    if option.when:
        condition = f"  has an effect only if {option.when}".replace("|", " or ")
        lines += textwrap.wrap(condition, width, subsequent_indent=" " * 6, break_on_hyphens=False)
    lines += [f"  formerly: {', '.join(option.former)}"] if option.former else []
    return "\n".join(lines)


def _listed(choices: Iterable[tuple[str, str]], width: int) -> list[str]:
    """One line for each choice and its meaning, which start in one column where the names are short."""
    choices = [(name or EMPTY, line) for name, line in choices]
    column = min(20, max((len(name) for name, _ in choices), default=0))
    lines: list[str] = []
    for name, line in choices:
        text = f"  {name:<{column}}  {line}"
        lines += textwrap.wrap(text, width, subsequent_indent=" " * 6, break_on_hyphens=False)
    return lines


def markdown(options: Iterable[Option]) -> str:
    """docs/options.md."""
    lines = [
        "# Options",
        "",
        "Generated by `python -m simpletuner.cli.surfaces`; a test compares. "
        "★ is shown by every help, ◦ only by `--help-all`.",
        "",
    ]
    for title, members in by_group(options).items():
        lines += [f"## {title}", "", "| Name | Values | Default | Meaning |", "|---|---|---|---|"]
        for option in members:
            mark = {"basic": "★ ", "expert": "◦ "}.get(option.level, "")
            values = kind(option, " · ") + (f", {option.unit}" if option.unit else "")
            help = f"{TO_COME} {option.help}" if option.key in NOT_YET else option.help
            help += f" Only if `{option.when}`.".replace("|", " or ") if option.when else ""
            help += _to_come_sentence(option)
            former = f" Formerly {', '.join(f'`{name}`' for name in option.former)}." if option.former else ""
            lines.append(f"| {mark}`{option.key}` | {values} | {shown(option.default)} | {help}{former} |")
        lines.append("")
    return "\n".join(lines)


def _to_come_sentence(option: Option) -> str:
    later = [name for name, _ in option.choices if name in to_come(option)]
    return f" Not yet available: {', '.join(f'`{name}`' for name in later)}." if later else ""


def json_schema(options: Iterable[Option]) -> dict[str, Any]:
    """A JSON schema that lets editors complete config.json, with and without leading dashes."""
    properties: dict[str, Any] = {}
    for option in options:
        text = f"{TO_COME} {option.help}" if option.key in NOT_YET else option.help + _to_come_sentence(option)
        entry: dict[str, Any] = {"description": text, "title": option.group}
        names = [name for name, _ in option.choices]
        if option.kind == "choice":
            entry["enum"] = names
        else:
            entry["type"] = [*JSON_TYPES[option.kind], "null"]
            entry |= {"items": {"enum": names}} if names else {}
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
