"""What holds for every test: torch is imported by none before this runs."""

import atexit
import gc
import os
import shutil
import tempfile

import pytest

# As the console script does. Two test processes on two cores would otherwise spend most of their time spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

os.environ.pop("COLUMNS", None)  # which the test runner sets for its workers; a test that wants a width says so

# What runs learn of this machine stays with the tests.
if "SIMPLETUNER_STATE_DIR" not in os.environ:
    os.environ["SIMPLETUNER_STATE_DIR"] = tempfile.mkdtemp(prefix="simpletuner-state-")
    atexit.register(shutil.rmtree, os.environ["SIMPLETUNER_STATE_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def s3():
    """An S3 server for buckets of tests' own."""
    from bucket import S3  # boto3 loads for the tests that ask for it

    server = S3()
    yield server
    server.close()


def pytest_collection_finish():
    """What the imports left behind is not looked at again: each run collects garbage a few times, and a million
    objects of libraries would make every one of them take as long as ten steps of the tiny model."""
    gc.collect()
    gc.freeze()
