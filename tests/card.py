"""Marks of tests that need a CUDA device: they are skipped where there is none."""

from __future__ import annotations

import pytest
import torch

CARD = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
COMPILER = [  # what the compiler itself warns of
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "DeprecationWarning", "FutureWarning")
]


def needs_card(test):
    """The same for one test."""
    for mark in CARD:
        test = mark(test)
    return test
