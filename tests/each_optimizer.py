"""Every optimizer of the table as a parameter of a test, left out where its package is not installed."""

from collections.abc import Iterable

import pytest

from simpletuner.rules.packages import installed

PACKAGES = {"bnb-": "bitsandbytes", "ao-": "torchao", "optimi-": "optimi"}


def each(names: Iterable[str]):
    return [_one(name) for name in names]


def _one(name: str):
    package = next((module for start, module in PACKAGES.items() if name.startswith(start)), None)
    if package is None:
        return name
    # The packages warn of what they lack on a CPU; torchao compiles, which takes its time.
    marks = [pytest.mark.filterwarnings("default"), *([pytest.mark.slow] if package == "torchao" else [])]
    return pytest.param(name, marks=[*marks, pytest.mark.skipif(not installed(package), reason=f"needs {package}")])
