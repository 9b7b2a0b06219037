"""What holds for every test: torch is imported by none before this runs."""

import os

# As the console script does. Two test processes on two cores would otherwise spend most of their time spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
