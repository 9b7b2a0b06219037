"""The kinds of quantised weights as parameters of tests: those whose library is missing are skipped."""

from __future__ import annotations

import importlib.util

import pytest

from simpletuner.quantization.kinds import KINDS

MODULES = {"quanto": "optimum", "torchao": "torchao", "bitsandbytes": "bitsandbytes"}


def missing(library: str) -> bool:
    return library in MODULES and importlib.util.find_spec(MODULES[library]) is None


def parameters(**of):
    """Every kind; of: attributes that the kinds must have."""
    return [
        pytest.param(name, marks=pytest.mark.skipif(missing(kind.library), reason=f"without {kind.library}"))
        for name, kind in KINDS.items()
        if all(getattr(kind, key) == value for key, value in of.items())
    ]


EVERY = pytest.mark.parametrize("kind", parameters())
