import pytest
from rules.cases import Case, speaks_only_when_broken

from simpletuner.rules.saving import low_disk_has_its_script

ACTION, SCRIPT = "disk_low_action", "disk_low_script"
CASES = [
    Case(54, low_disk_has_its_script, {ACTION: "script"}, "names no program", (ACTION, SCRIPT), mended)
    for mended in ({SCRIPT: "rm.sh"}, {ACTION: "stop"})
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_saving(case, config):
    speaks_only_when_broken(case, config)
