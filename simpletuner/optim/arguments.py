"""`optimizer_config` as it is written, read as arguments. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from simpletuner.errors import ConfigError, Problem


def arguments(written: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """`optimizer_config` as a dict: an object, or text such as "eps=1e-6,rounding=kahan" with values read as JSON."""
    if not isinstance(written, str):
        return dict(written or {})
    found: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in written.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            message = f'optimizer_config: "{part}" is not of the form name=value'
            raise ConfigError(Problem(message, keys=("optimizer_config",), fix="write it as eps=1e-6,weight_decay=0"))
        try:
            found[name.strip()] = json.loads(value.strip().lower() if value.strip() in ("True", "False") else value)
        except ValueError:
            found[name.strip()] = value.strip()
    return found
