import pytest
from rules.cases import FULL, LORA, Case, speaks_only_when_broken

from simpletuner.rules import offload

GROUPS, COMPONENTS, BLOCKS = offload.GROUPS, offload.COMPONENTS, offload.BLOCKS
SAVE, KEPT, INTERVAL = "offload_during_save", "gradient_checkpointing", "gradient_checkpointing_interval"
DROPOUT = {"lora_dropout": 0.1}
STAYS, AGAIN = offload.what_moves_is_frozen, offload.moved_blocks_are_recomputed
BOTH = {GROUPS: True, COMPONENTS: True}
CASES = [
    Case(18, offload.one_offload, BOTH, "are both on", (GROUPS, COMPONENTS), {COMPONENTS: False}),
    Case(18, offload.one_offload, BOTH, "are both on", (GROUPS, COMPONENTS), {GROUPS: False}),
    Case(19, offload.swap_alone, {BLOCKS: 5, GROUPS: True}, "the same weights", (BLOCKS, GROUPS), {BLOCKS: 0}),
    Case(19, offload.swap_alone, {BLOCKS: 5, COMPONENTS: True}, COMPONENTS, (BLOCKS, COMPONENTS), {COMPONENTS: False}),
    Case(0, STAYS, {GROUPS: True, **FULL}, "trains all", (GROUPS, "model_type"), {GROUPS: False}),
    Case(0, STAYS, {BLOCKS: 5, **FULL}, "trains all", (BLOCKS, "model_type"), LORA),
    Case(0, STAYS, {SAVE: True, **FULL}, "has none", (SAVE,), LORA, "notice"),
    Case(0, offload.what_moves_has_no_dropout, {BLOCKS: 5, **DROPOUT}, "lora_dropout", (BLOCKS,), {"lora_dropout": 0}),
    Case(0, offload.what_moves_has_no_dropout, {GROUPS: True, **DROPOUT}, "lora_dropout", (GROUPS,), {GROUPS: False}),
    Case(0, AGAIN, {BLOCKS: 5, KEPT: False}, KEPT, (BLOCKS, KEPT), {KEPT: True}, "notice"),
    Case(0, AGAIN, {GROUPS: True, INTERVAL: 2}, INTERVAL, (GROUPS, INTERVAL),
         {INTERVAL: 1}, "notice"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_offload(case, config):
    speaks_only_when_broken(case, config)
