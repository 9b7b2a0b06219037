import pytest
from rules.cases import FULL, LORA, OUR_OWN, TORCH, Case, speaks_only_when_broken

from simpletuner.rules import precision

BASE, MIXED, DEFAULT = precision.BASE, "mixed_precision", "base_model_default_dtype"
PLAIN, VIA = {BASE: "no_change"}, "quantize_via"
RULE_OF_OURS = precision.updates_are_kept
CASES = [
    Case(10, precision.trained_weights_are_unquantised, FULL | {BASE: "int8-quanto"}, "int8-quanto cannot be trained",
         ("model_type", BASE), LORA),
    Case(10, precision.trained_weights_are_unquantised, FULL | {BASE: "nf4-bnb"}, "nf4-bnb cannot be trained",
         ("model_type", BASE), {BASE: "bf16"}),
    Case(24, precision.pipeline_can_quantise, {VIA: "pipeline", BASE: "fp8-compute"}, "cannot make fp8-compute",
         (VIA, BASE), {VIA: "auto"}),
    Case(24, precision.pipeline_can_quantise, {VIA: "pipeline", BASE: "int8-compute"}, "cannot make int8-compute",
         (VIA, BASE), {BASE: "int8-torchao"}),
    Case(24, precision.pipeline_can_quantise, {VIA: "pipeline", BASE: "int4-torchao"}, "cannot be taken over",
         (VIA, BASE), {BASE: "int4-quanto"}),
    Case(41, precision.bf16_optimizer, {MIXED: "no"}, "trains bf16 weights, and mixed_precision is no",
         ("optimizer", MIXED), TORCH),
    Case(41, precision.bf16_optimizer, {MIXED: "fp16"}, "mixed_precision is fp16", ("optimizer", MIXED),
         {MIXED: "bf16"}),
    Case(41, precision.bf16_optimizer, {BASE: "fp32"}, f"{BASE} is fp32", ("optimizer", BASE), {BASE: "int8-quanto"}),
    Case(41, precision.bf16_optimizer, {DEFAULT: "fp32"}, f"{DEFAULT} is fp32", ("optimizer", DEFAULT), TORCH),
    Case(OUR_OWN, precision.base_matches_computation, {BASE: "fp16"}, "kept in fp16", (BASE, MIXED), PLAIN, "notice"),
    Case(OUR_OWN, RULE_OF_OURS, FULL | TORCH, "torch-adamw rounds small updates away", (BASE, "optimizer"),
         {"optimizer": "adamw_bf16"}),
    Case(OUR_OWN, RULE_OF_OURS, FULL | {"optimizer": "bnb-adamw"}, "bnb-adamw rounds small updates away", (BASE,),
         {"optimizer": "optimi-adamw"}),
    *(
        Case(OUR_OWN, RULE_OF_OURS, FULL | TORCH, "weights in bf16", (BASE, MIXED), mended)
        for mended in ({BASE: "fp32"}, {DEFAULT: "fp32"}, {MIXED: "no"}, LORA)
    ),
    Case(OUR_OWN, RULE_OF_OURS, FULL | TORCH | {MIXED: "fp16"}, "weights in fp16", (BASE, MIXED), {BASE: "fp32"}),
    Case(OUR_OWN, RULE_OF_OURS, FULL | {BASE: "fp16"}, "weights in fp16, where adamw_bf16", (BASE,), {BASE: "bf16"}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_precision(case, config):
    speaks_only_when_broken(case, config)


def test_a_quantised_base_in_full_training_is_told_once(config):
    broken = config(FULL | TORCH | {BASE: "int8-quanto"})
    assert precision.updates_are_kept(broken) is None and precision.trained_weights_are_unquantised(broken)


def test_packed_weights_do_not_touch_a_bf16_optimizer(config):
    assert precision.bf16_optimizer(config({BASE: "nf4-bnb"})) is None
