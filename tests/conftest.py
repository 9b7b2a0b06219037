"""What holds for every test: torch is imported by none before this runs."""

import atexit
import os
import shutil
import tempfile

# As the console script does. Two test processes on two cores would otherwise spend most of their time spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

os.environ.pop("COLUMNS", None)  # which the test runner sets for its workers; a test that wants a width says so

# What runs learn of this machine stays with the tests.
if "SIMPLETUNER_STATE_DIR" not in os.environ:
    os.environ["SIMPLETUNER_STATE_DIR"] = tempfile.mkdtemp(prefix="simpletuner-state-")
    atexit.register(shutil.rmtree, os.environ["SIMPLETUNER_STATE_DIR"], ignore_errors=True)
