"""Makes the stand-in run importable, here and in child processes."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from toy_run import Run  # noqa: E402


@pytest.fixture
def run(tmp_path):
    """run(**changes) makes a tiny run below a folder of this test."""

    def make(folder="out", **changes):
        return Run(tmp_path / folder, **changes)

    return make
