"""Options that depend on one value of another."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config import OPTIONS, Config
from simpletuner.errors import Problem
from simpletuner.rules.findings import notice


def conditions_hold(config: Config) -> Iterator[Problem]:
    """One that has no effect says so, unless it holds its default."""
    values = config.values()
    for key in sorted(config.given & OPTIONS.keys()):
        option = OPTIONS[key]
        if option.when and values[key] != option.default and not config.applies(key):
            yield notice(f"{key} has no effect unless {option.when}", key, option.when.key)
