"""A raw value, from JSON, an environment variable or a command line, becomes a value of its option's kind."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from simpletuner import reading
from simpletuner.option import Option

EMPTY_IS_A_VALUE = {
    "validation_negative_prompt",
    "skip_file_discovery",
    "dynamo_mode",
}
NONE_IS_A_VALUE = {"report_to", "resume_from_checkpoint", "pretrained_transformer_subfolder", "evaluation_type"}
LONGEST_NAME = 255  # bytes that one part of a path may have, on every common file system


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
    raise Unusable(f"{shown(value)} is not true or false")


def _to_number(value: Any, whole: bool) -> float | int:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise Unusable(f"{shown(value)} is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise Unusable(f"{shown(value)} is not a number") from None
    if not math.isfinite(number):
        raise Unusable(f"{shown(value)} is not a finite number")
    if not whole:
        return number
    if not number.is_integer():
        raise Unusable(f"{shown(value)} is not a whole number")
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


def json_text(text: str) -> reading.Document:
    """JSON in the text of a value, read as tolerantly as a file is; the places are those in the text."""
    return reading.parse_text(text, "", names=True)


def _to_object(value: Any, want: type = dict) -> Any:
    if isinstance(value, str) and want is dict and "=" in value and value.strip()[:1] not in "[{":
        return value  # k=v,k=v: its reader takes it apart
    if isinstance(value, str):
        document = json_text(value)
        if document.failed:
            wrong = next(problem for problem in document.problems if problem.severity == "error")
            raise Unusable(f"{shown(value)}: {wrong.message}, at {wrong.where.lstrip(':')}")
        value = document.value
    if want is dict and not isinstance(value, (dict, list)):
        raise Unusable(f"{shown(value)} is not an object")
    return value


def _to_path(text: str) -> str:
    if "\0" in text or any(len(os.fsencode(part)) > LONGEST_NAME for part in text.split("/")):
        raise Unusable(f"{shown(text)} can be no path")
    return text


def names_a_file(option: Option, value: Any) -> bool:
    """Whether the text for an object or a list is a path. The default may name a file that nobody has written."""
    if not isinstance(value, str) or value == option.default:
        return False
    text = value.strip()
    if option.kind == "list" and not option.choices:
        return text[:1] != "[" and text.lower().endswith(".json") and "," not in text
    if option.kind != "object":
        return False
    return text[:1] not in ("[", "{") and "=" not in text and text.lower() != "none"


def _to_lines(value: Any) -> str:
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return value
    lines = _to_list(value)
    if not all(isinstance(line, str) for line in lines):
        raise Unusable(f"{shown(value)} is neither a text nor a list of texts")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """The value as JSON, cut to what a message has room for."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def unquoted(value: Any) -> Any:
    """A text without the matching quotes around the whole of it, if there are any; else the value as it is."""
    if not isinstance(value, str) or len(value) < 2 or value[0] not in "\"'" or value[0] != value[-1]:
        return value
    inner = value[1:-1]
    return value if value[0] in inner else inner


def is_unset(key: str, value: Any) -> bool:
    """null always means unset, "" does unless it is a value of its own. What "none" means depends on the option."""
    if isinstance(value, str):
        return value.strip() == "" and key not in EMPTY_IS_A_VALUE
    return value is None


def convert(option: Option, value: Any) -> Any:
    """`value` as the option's kind, before bounds are checked. Raises Unusable."""
    value = unquoted(value)
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
        items = _to_list(value)
        if option.choices:  # none of them holds a space, so that one may stand between them
            return [_to_choice(option, word) for item in items for word in str(item).split()]
        return items
    if option.kind == "lines":
        return _to_lines(value)
    if option.kind == "object":
        return value if value == option.default else _to_object(value)
    if option.kind == "choice":
        return _to_choice(option, value)
    if isinstance(value, (bool, list, dict)):
        raise Unusable(f"{shown(value)} is not a text")
    return _to_path(str(value)) if option.kind == "path" else str(value)


def _to_choice(option: Option, value: Any) -> str:
    known = [name for name, _ in option.choices]
    if isinstance(value, bool):
        off = ("false", "no", "none", "disabled")
        value = str(value).lower() if value else next((word for word in off if word in known), "false")
    text = str(value).strip()
    matches = [k for k in known if k.lower() == text.lower()]
    if not matches:
        raise Unusable(f"{shown(value)} is not a choice")
    return matches[0]
