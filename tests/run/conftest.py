"""The tiny model and the pictures that the whole runs share; both are read only."""

import os
import sys
from pathlib import Path

import pytest
import tiny_flux

sys.path.insert(0, str(Path(__file__).parent))

import small  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def hashes_apart(tmp_path_factory):
    """File hashes are remembered in a folder of the tests, not in the user's."""
    before = os.environ.get("SIMPLETUNER_STATE_DIR")
    os.environ["SIMPLETUNER_STATE_DIR"] = str(tmp_path_factory.mktemp("state"))
    yield
    if before is None:
        del os.environ["SIMPLETUNER_STATE_DIR"]
    else:
        os.environ["SIMPLETUNER_STATE_DIR"] = before


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny_flux.build(tmp_path_factory.mktemp("model") / "flux")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Seven pictures of several sizes."""
    return small.paint(tmp_path_factory.mktemp("pictures") / "many sizes")


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """Eight pictures of one size, hence of one bucket."""
    return small.paint(tmp_path_factory.mktemp("squares") / "square", small.SQUARE)


@pytest.fixture
def config(tmp_path, model, pictures):
    """config(output, **changes) writes a configuration below a folder of this test."""

    def make(output="out", pictures=pictures, model=model, **changes):
        return small.configure(tmp_path, model, pictures, output, **changes)

    return make


@pytest.fixture(scope="session")
def forks():
    server = small.Forks()
    yield server
    server.close()
