import pytest
from rules.cases import Case, speaks_only_when_broken

from simpletuner.rules import offload

GROUPS, COMPONENTS, BLOCKS = offload.GROUPS, offload.COMPONENTS, offload.BLOCKS
BOTH = {GROUPS: True, COMPONENTS: True}
CASES = [
    Case(18, offload.one_offload, BOTH, "are both on", (GROUPS, COMPONENTS), {COMPONENTS: False}),
    Case(18, offload.one_offload, BOTH, "are both on", (GROUPS, COMPONENTS), {GROUPS: False}),
    Case(19, offload.swap_alone, {BLOCKS: 5, GROUPS: True}, "the same weights", (BLOCKS, GROUPS), {BLOCKS: 0}),
    Case(19, offload.swap_alone, {BLOCKS: 5, COMPONENTS: True}, COMPONENTS, (BLOCKS, COMPONENTS), {COMPONENTS: False}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_offload(case, config):
    speaks_only_when_broken(case, config)
