import pytest
from rules.cases import FULL, LORA, OUR_OWN, Case, speaks_only_when_broken

from simpletuner.rules import attention, speed

KERNEL, BACKEND, DROPOUT = "attention_mechanism", "dynamo_backend", {"lora_dropout": 0.1}
AS_THEY_ARE, JOINED, ALONE = speed.modules_run_as_they_are, speed.products_are_joined, speed.blocks_are_compiled_alone
CASES = [
    Case(OUR_OWN, AS_THEY_ARE, FULL | {KERNEL: "flex"}, "with model_type=full", (KERNEL, "model_type"), LORA, "notice"),
    Case(OUR_OWN, AS_THEY_ARE, DROPOUT | {BACKEND: "inductor"}, "with lora_dropout=0.1", (BACKEND, "lora_dropout"),
         {"lora_dropout": 0.0}, "notice"),
    Case(OUR_OWN, AS_THEY_ARE, DROPOUT | {BACKEND: "eager"}, "dynamo_backend=eager", (BACKEND,), {BACKEND: "no"},
         "notice"),
    Case(OUR_OWN, JOINED, {speed.JOINED: True}, "one product in any case", (speed.JOINED,), {speed.JOINED: False},
         "notice"),
    Case(OUR_OWN, JOINED, FULL | {speed.JOINED: True}, "with model_type=full", (speed.JOINED, "model_type"),
         {speed.JOINED: False}, "notice"),
    Case(OUR_OWN, ALONE, {speed.REGIONAL: False}, "once for each kind", (speed.REGIONAL,), {speed.REGIONAL: True},
         "notice"),
    Case(OUR_OWN, ALONE, {speed.REGIONAL: False, BACKEND: "inductor"}, "no effect", (speed.REGIONAL,),
         {BACKEND: "no"}, "notice"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_speed(case, config):
    speaks_only_when_broken(case, config)


def test_sage_without_effect_is_told_once(config):
    broken = config(FULL | {KERNEL: "sageattention"})
    assert attention.sage_is_for_validation(broken) is None and len(list(speed.modules_run_as_they_are(broken))) == 1
