"""Declare an option once, next to the code that uses it; everything else reads the `Option` record.

    class Optimization(Group, title="Optimizer"):
        learning_rate: Annotated[float, Gt(0), Basic] = 1e-4
        \"\"\"Peak learning rate, reached at the end of warmup; higher learns faster and burns sooner.\"\"\"

`parse` turns raw values (JSON, environment or command-line text) into frozen groups and reports all problems together.
Reading the schema imports no torch.
"""

from __future__ import annotations

import functools
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from simpletuner import reading
from simpletuner.errors import Problem, has_errors
from simpletuner.option import GIVEN, Basic, Expert, Former, Level, Lines, Meaning, Option, Raw, Unit, When
from simpletuner.registry import meant, nearest, one_slip_apart
from simpletuner.values import FALSE, TRUE, Unusable, convert, is_unset, json_text, names_a_file, shown

__all__ = [
    "Basic",
    "Expert",
    "FALSE",
    "Former",
    "GIVEN",
    "Ge",
    "Group",
    "Gt",
    "Le",
    "Lines",
    "Lt",
    "Meaning",
    "Option",
    "Raw",
    "TRUE",
    "Unit",
    "When",
    "convert",
    "is_unset",
    "options",
    "parse",
    "shown",
    "unknown_key",
]

FEW = 12  # choices that a message has room for


class Group(BaseModel):
    """A frozen set of options that one part of the code needs. Subclass with a title."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        arbitrary_types_allowed=True,
        defer_build=True,  # values are read field by field; building each validator would slow every start
    )
    title: ClassVar[str] = ""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        cls.title = cls.model_config.get("title") or cls.title
        missing = [name for name, field in cls.model_fields.items() if not field.description]
        if missing:
            raise TypeError(f"{cls.__name__}: options without help: {', '.join(missing)}")


def _unwrap(annotation: Any) -> tuple[Any, bool, list[Any]]:
    """(inner type, optional, metadata) of Annotated and `X | None` in any nesting."""
    optional, metadata = False, []
    while True:
        origin = typing.get_origin(annotation)
        if origin is Annotated:
            annotation, *extra = typing.get_args(annotation)
            metadata += extra
        elif origin in (typing.Union, types.UnionType) and type(None) in typing.get_args(annotation):
            rest = tuple(a for a in typing.get_args(annotation) if a is not type(None))
            optional, annotation = True, typing.Union[rest]  # noqa: UP007 - built at run time
        else:
            return annotation, optional, metadata


def _kind(inner: Any) -> str:
    origin = typing.get_origin(inner) or inner
    if origin is Literal:
        return "choice"
    if origin in (list, tuple, set, frozenset):
        return "list"
    if origin in (dict, Mapping) or origin is typing.get_origin(Mapping[str, Any]):
        return "object"
    for type_, name in ((bool, "bool"), (int, "int"), (float, "float"), (Path, "path"), (str, "text")):
        if isinstance(origin, type) and issubclass(origin, type_):
            return name
    return "object"


def _option(group: type[Group], key: str, hints: Mapping[str, Any]) -> Option:
    field = group.model_fields[key]
    inner, optional, metadata = _unwrap(hints[key])
    values: dict[str, Any] = {}
    for mark in metadata:
        if isinstance(mark, Gt):
            values |= {"low": mark.gt, "low_open": True}
        elif isinstance(mark, Ge):
            values |= {"low": mark.ge}
        elif isinstance(mark, Lt):
            values |= {"high": mark.lt, "high_open": True}
        elif isinstance(mark, Le):
            values |= {"high": mark.le}
        elif isinstance(mark, Level):
            values["level"] = mark.name
        elif isinstance(mark, Unit):
            values["unit"] = mark.name
        elif isinstance(mark, Former):
            values["former"] = mark.names
        elif isinstance(mark, When):
            values["when"] = mark
    item = next(iter(typing.get_args(inner)), None) if typing.get_origin(inner) is list else inner
    if typing.get_origin(item) is Literal:
        lines = next((m.lines for m in metadata if isinstance(m, Meaning)), {})
        values["choices"] = tuple((str(c), lines.get(str(c), "")) for c in typing.get_args(item))
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    values.setdefault("level", "standard")
    return Option(
        key=key,
        kind="lines" if Lines in metadata else _kind(inner),
        default=default,
        help=" ".join((field.description or "").split()),
        group=group.title,
        optional=optional,
        **values,
    )


def options(groups: Iterable[type[Group]]) -> dict[str, Option]:
    """All options by key, in order of declaration. A key or former name declared twice is a TypeError."""
    found: dict[str, Option] = {}
    names: dict[str, str] = {}
    for group in groups:
        hints = typing.get_type_hints(group, include_extras=True)
        for key in group.model_fields:
            option = _option(group, key, hints)
            for name in (key, *option.former):
                if name in names:
                    raise TypeError(f"option {name} is declared in {names[name]} and in {group.__name__}")
                names[name] = group.__name__
            found[key] = option
    return found


def _fix_for(option: Option, value: Any) -> str:
    if option.choices:
        names = [name or '""' for name, _ in option.choices]
        near = nearest(str(value), names)
        if len(names) <= FEW:
            rest = f"choices: {', '.join(names)}"
        else:
            rest = f"the usual choice is {shown(option.default)}; simpletuner help {option.key} lists all"
        return f"{meant(near)} {rest}" if near else rest
    wanted = {"bool": "true or false", "int": "a whole number", "float": "a number"}.get(
        option.kind, f"a {option.kind}"
    )
    wanted = {"lines": "a text or a list of texts", "object": "an object, or a JSON file"}.get(option.kind, wanted)
    return f"give {wanted}" + (f" {option.within}" if option.bounds else "")


def _read(group: type[Group], option: Option, raw: Raw) -> tuple[Any, list[Problem]]:
    """(value, problems). With an error among them the value is not to be used."""
    if names_a_file(option, raw.value):
        document = reading.read(Path(os.path.expanduser(raw.value.strip())), names=True)
        found = [replace(p, message=f"{option.key}: {p.message}", keys=(option.key,)) for p in document.problems]
        if document.failed:
            return None, found
        raw = Raw(document.value, document.where())
        if option.kind == "list" and not isinstance(document.value, list):
            message = f"{option.key}: {shown(document.value)} is not a list"
            return None, [*found, Problem(message, where=raw.origin, keys=(option.key,), fix="write [..., ...]")]
    else:
        found = _tolerated(option, raw)
    value, problem = _convert(group, option, raw)
    return value, [*found, *([problem] if problem else [])]


def _tolerated(option: Option, raw: Raw) -> list[Problem]:
    """The warnings about JSON in the text of a value: comments, a trailing comma."""
    starts = {"object": ("{", "["), "list": ("[",), "lines": ("[",)}.get(option.kind)
    if not starts or not isinstance(raw.value, str) or not raw.value.lstrip().startswith(starts):
        return []
    return [
        replace(p, message=f"{option.key}, at {p.where[1:]} of its text: {p.message}", where=raw.origin)
        for p in json_text(raw.value).problems
        if p.severity != "error"
    ]


def _convert(group: type[Group], option: Option, raw: Raw) -> tuple[Any, Problem | None]:
    try:
        value = convert(option, raw.value)
        if value is None and option.optional:
            return None, None
        return _adapter(group, option.key).validate_python(value), None
    except Unusable as error:
        return None, Problem(
            f"{option.key}: {error}", where=raw.origin, keys=(option.key,), fix=_fix_for(option, raw.value)
        )
    except ValidationError as error:
        reason = error.errors()[0]
        said = reason["msg"].removeprefix("Value error, ")
        if reason["type"] not in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
            message = f"{option.key}: {shown(raw.value)}: {said}"
        elif not option.bounds:  # they are those of an item
            message = f"{option.key}: {shown(reason['input'])}: {said}"
        else:
            how = "outside" if option.bounds[:1] in ("(", "[") else "not"
            message = f"{option.key}: {shown(raw.value)} is {how} {option.bounds}"
        return None, Problem(message, where=raw.origin, keys=(option.key,), fix=_fix_for(option, raw.value))


@functools.cache
def _known(group: type[Group]) -> dict[str, Option]:
    return options([group])


@functools.cache
def _adapter(group: type[Group], key: str) -> TypeAdapter[Any]:
    field = group.model_fields[key]
    wanted: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    return TypeAdapter(wanted)


def parse(groups: Iterable[type[Group]], raw: Mapping[str, Raw]) -> tuple[dict[str, Group], list[Problem]]:
    """({group class name: instance}, problems). What is unset or has a problem takes its default.

    Unknown keys are the caller's: they need the tables of former and refused names. Keys are canonical here.
    """
    instances: dict[str, Group] = {}
    problems: list[Problem] = []
    for group in groups:
        known = _known(group)
        values: dict[str, Any] = {}
        for key, option in known.items():
            if key not in raw or is_unset(key, raw[key].value):
                if group.model_fields[key].is_required():
                    problems.append(
                        Problem(
                            f"{key} is required",
                            keys=(key,),
                            fix=option.help,
                            where=raw[key].origin if key in raw else "",
                        )
                    )
                continue
            value, found = _read(group, option, raw[key])
            problems += found
            if not has_errors(found):
                values[key] = value
        if any(group.model_fields[k].is_required() and k not in values for k in known):
            continue
        instances[group.__name__] = group.model_construct(**values)
    return instances, problems


def unknown_key(
    key: str, known: Iterable[str], where: str, others: Iterable[str] = (), former: Mapping[str, str] | None = None
) -> Problem:
    """The error for a key that no group declares.

    others: keys that are no options, but have an answer of their own; meant only if one slip leads to them.
    former: names of former versions and what they are now.
    """
    known, former = list(known), former or {}
    slips = [other for other in (*others, *former) if one_slip_apart(key, other)]
    near = nearest(key, [*known, *slips])
    best = near[0] if near else ""
    if best in former:
        best = former[best]
        fix = f'did you mean "{best}", formerly "{near[0]}"?'
    else:
        fix = meant(near) if near else "simpletuner train --help lists all"
    more = f"   more: simpletuner help {best}" if best in known else ""
    return Problem(f'unknown option "{key}"', where=where, keys=(key,), fix=fix + more)
