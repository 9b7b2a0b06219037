"""Declare an option once, next to the code that uses it; everything else reads the `Option` record.

    class Optimization(Group, title="Optimizer"):
        learning_rate: Annotated[float, Gt(0), Basic] = 1e-4
        \"\"\"Peak learning rate, reached at the end of warmup; higher learns faster and burns sooner.\"\"\"

`parse` turns raw values (JSON, environment or command-line text) into frozen groups and reports all problems together.
Reading the schema imports no torch.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from simpletuner.errors import Problem
from simpletuner.registry import did_you_mean, nearest

__all__ = [
    "Basic",
    "Expert",
    "Former",
    "Ge",
    "Group",
    "Gt",
    "Le",
    "Lt",
    "Meaning",
    "Option",
    "Raw",
    "Unit",
    "When",
    "options",
    "parse",
]

EMPTY_IS_A_VALUE = {
    "validation_negative_prompt",
    "skip_file_discovery",
    "dynamo_mode",
    "pretrained_transformer_subfolder",
}
NONE_IS_A_VALUE = {"report_to", "resume_from_checkpoint", "pretrained_transformer_subfolder", "evaluation_type"}


class _Level:
    def __init__(self, name: str):
        self.name = name


Basic = _Level("basic")  # shown by --help, asked by the wizard
Expert = _Level("expert")  # shown by --help-all


@dataclass(frozen=True)
class Unit:
    """Shown behind the value: "px", "steps", "seconds"."""

    name: str


@dataclass(frozen=True)
class Former:
    """Names under which the option used to be known."""

    names: tuple[str, ...]

    def __init__(self, *names: str):
        object.__setattr__(self, "names", names)


@dataclass(frozen=True)
class Meaning:
    """One line for each choice of a Literal."""

    lines: Mapping[str, str]


@dataclass(frozen=True)
class When:
    """The option has an effect only while another option has one of these values."""

    key: str
    values: tuple[Any, ...]

    def __init__(self, **condition: Any):
        ((key, value),) = condition.items()
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "values", value if isinstance(value, tuple) else (value,))

    def __str__(self) -> str:
        return f"{self.key}={'|'.join(str(v).lower() if isinstance(v, bool) else str(v) for v in self.values)}"


@dataclass(frozen=True)
class Option:
    """One option as plain data."""

    key: str
    kind: str  # bool, int, float, text, path, choice, list, object
    default: Any
    help: str
    group: str
    level: str  # basic, standard, expert
    choices: tuple[tuple[str, str], ...] = ()
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    unit: str = ""
    when: When | None = None
    former: tuple[str, ...] = ()
    optional: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.key

    @property
    def bounds(self) -> str:
        """The allowed range as people write it: "(0, 1]"; empty if there is none."""
        if self.low is None and self.high is None:
            return ""
        if self.high is None:
            return f"{'>' if self.low_open else '>='} {self.low:g}"
        if self.low is None:
            return f"{'<' if self.high_open else '<='} {self.high:g}"
        return f"{'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"

    @property
    def within(self) -> str:
        """The bounds as the end of a sentence: "in (0, 1]", ">= 1"."""
        return f"in {self.bounds}" if self.bounds[:1] in ("(", "[") else self.bounds


@dataclass(frozen=True)
class Raw:
    """A value as it was written, with its origin."""

    value: Any
    origin: str  # label shown to people: "config/config.json:14:3", "command line"


class Group(BaseModel):
    """A frozen set of options that one part of the code needs. Subclass with a title."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        arbitrary_types_allowed=True,
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
        elif isinstance(mark, _Level):
            values["level"] = mark.name
        elif isinstance(mark, Unit):
            values["unit"] = mark.name
        elif isinstance(mark, Former):
            values["former"] = mark.names
        elif isinstance(mark, When):
            values["when"] = mark
    if typing.get_origin(inner) is Literal:
        lines = next((m.lines for m in metadata if isinstance(m, Meaning)), {})
        values["choices"] = tuple((str(c), lines.get(str(c), "")) for c in typing.get_args(inner))
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    values.setdefault("level", "standard")
    return Option(
        key=key,
        kind=_kind(inner),
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


class Unusable(ValueError):
    """A raw value that cannot be read as its option's kind; the text says what was found and what is wanted."""


TRUE, FALSE = {"true", "yes", "y", "on", "1"}, {"false", "no", "n", "off", "0"}


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    word = str(value).strip().lower() if isinstance(value, str) else ""
    if word in TRUE or word in FALSE:
        return word in TRUE
    raise Unusable(f"{_shown(value)} is not true or false")


def _to_number(value: Any, whole: bool) -> float | int:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise Unusable(f"{_shown(value)} is not a number")
    try:
        number = float(value)
    except ValueError:
        raise Unusable(f"{_shown(value)} is not a number") from None
    if not math.isfinite(number):
        raise Unusable(f"{_shown(value)} is not a finite number")
    if not whole:
        return number
    if not number.is_integer():
        raise Unusable(f"{_shown(value)} is not a whole number")
    return int(value) if isinstance(value, int) else int(number)


def _to_list(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            return _to_object(text, list)
        return [part.strip() for part in text.replace(";", ",").split(",") if part.strip()]
    return [value]


def _to_object(value: Any, want: type = dict) -> Any:
    if isinstance(value, str) and want is dict and "=" in value and value.strip()[:1] not in "[{":
        return value  # k=v,k=v: its reader takes it apart
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip()[:1] in "[{" else json.loads(Path(value).read_text("utf-8"))
        except OSError as error:
            raise Unusable(f"{_shown(value)}: {error.strerror or error}") from None
        except ValueError as error:
            raise Unusable(f"{_shown(value)} is not JSON: {error}") from None
    if want is dict and not isinstance(value, (dict, list)):
        raise Unusable(f"{_shown(value)} is not an object")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def is_unset(key: str, value: Any) -> bool:
    """null always means unset, "" does unless it is a value of its own. What "none" means depends on the option."""
    if isinstance(value, str):
        return value.strip() == "" and key not in EMPTY_IS_A_VALUE
    return value is None


def convert(option: Option, value: Any) -> Any:
    """`value` as the option's kind, before bounds are checked. Raises Unusable."""
    if isinstance(value, str) and len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1]
    if (
        option.optional
        and isinstance(value, str)
        and value.strip().lower() == "none"
        and option.key not in NONE_IS_A_VALUE
    ):
        return None
    if option.kind == "bool":
        return _to_bool(value)
    if option.kind in ("int", "float"):
        return _to_number(value, option.kind == "int")
    if option.kind == "list":
        return _to_list(value)
    if option.kind == "object":
        return _to_object(value)
    if option.kind == "choice":
        return _to_choice(option, value)
    if isinstance(value, (bool, list, dict)):
        raise Unusable(f"{_shown(value)} is not a text")
    return str(value)


def _to_choice(option: Option, value: Any) -> str:
    known = [name for name, _ in option.choices]
    if isinstance(value, bool):
        value = str(value).lower()
    text = str(value).strip()
    matches = [k for k in known if k.lower() == text.lower()]
    if not matches:
        raise Unusable(f"{_shown(value)} is not a choice")
    return matches[0]


def _fix_for(option: Option, value: Any) -> str:
    if option.kind == "choice":
        near = nearest(str(value), [c for c, _ in option.choices])
        rest = f"choices: {', '.join(c for c, _ in option.choices)}"
        return f'did you mean "{near[0]}"? {rest}' if near else rest
    wanted = {"bool": "true or false", "int": "a whole number", "float": "a number"}.get(
        option.kind, f"a {option.kind}"
    )
    return f"give {wanted}" + (f" {option.within}" if option.bounds else "")


def _read(group: type[Group], option: Option, raw: Raw) -> tuple[Any, Problem | None]:
    try:
        value = convert(option, raw.value)
        if value is None and option.optional:
            return None, None
        field = group.model_fields[option.key]
        wanted: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        return TypeAdapter(wanted).validate_python(value), None
    except Unusable as error:
        return None, Problem(
            f"{option.key}: {error}", where=raw.origin, keys=(option.key,), fix=_fix_for(option, raw.value)
        )
    except ValidationError as error:
        reason = error.errors()[0]
        if reason["type"] in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
            how = "outside" if option.bounds[:1] in ("(", "[") else "not"
            message = f"{option.key}: {_shown(raw.value)} is {how} {option.bounds}"
        else:
            message = f"{option.key}: {_shown(raw.value)}: {reason['msg']}"
        return None, Problem(message, where=raw.origin, keys=(option.key,), fix=_fix_for(option, raw.value))


def parse(groups: Iterable[type[Group]], raw: Mapping[str, Raw]) -> tuple[dict[str, Group], list[Problem]]:
    """({group class name: instance}, problems). What is unset or has a problem takes its default.

    Unknown keys are the caller's: they need the tables of former and refused names. Keys are canonical here.
    """
    instances: dict[str, Group] = {}
    problems: list[Problem] = []
    for group in groups:
        known = options([group])
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
            value, problem = _read(group, option, raw[key])
            if problem:
                problems.append(problem)
            else:
                values[key] = value
        if any(group.model_fields[k].is_required() and k not in values for k in known):
            continue
        instances[group.__name__] = group.model_construct(**values)
    return instances, problems


def unknown_key(key: str, known: Iterable[str], where: str) -> Problem:
    """The error for a key that no group declares."""
    known = list(known)
    more = "".join(f"   more: simpletuner help {name}" for name in nearest(key, known, limit=1))
    return Problem(f'unknown option "{key}"', where=where, keys=(key,), fix=did_you_mean(key, known) + more)
