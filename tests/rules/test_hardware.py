import pytest
from rules.cases import CPU, H100, OUR_OWN, V100, Case, gpu, machine, speaks_only_when_broken

from simpletuner import rules
from simpletuner.machine import AMD, APPLE
from simpletuner.rules import hardware

BASE, IDS, COUNT, START = hardware.BASE, hardware.IDS, hardware.PROCESSES, "lora_init_type"
STREAM = "group_offload_use_stream"
STREAMS = {STREAM: True, "enable_group_offload": True}
ONE, OLD, A100 = machine(H100), machine(V100), machine(gpu("NVIDIA A100", (8, 0)))
TWO = machine(H100, gpu("NVIDIA H100", (9, 0), 1))
MIXED = machine(H100, gpu("NVIDIA V100", (7, 0), 1))
AMDS, MAC = machine(other=AMD), machine(other=APPLE)
NF4, LION = {BASE: "nf4-bnb"}, {"optimizer": "bnb-lion8bit"}


def hard(number, rule, broken, said, key, here, there, mended=None, severity="error", code=5):
    return Case(number, rule, broken, said, (key,), mended or {}, severity, code, here, there)


LOFTQ, CUDA = hardware.loftq_has_nvidia, hardware.bitsandbytes_has_cuda
KIND, GPUS = hardware.base_is_computable, hardware.processes_have_gpus
SWAP, SAVE = "blocks_to_swap", "offload_during_save"
AWAY, PARKED = hardware.offload_has_somewhere_to_go, {"gradient_checkpointing_backend": "offload"}
FP8, INT4, T5 = {BASE: "fp8-compute"}, {BASE: "int4-quanto"}, "text_encoder_2_precision"
CASES = [
    hard(12, LOFTQ, {START: "loftq"}, "there is none", START, CPU, ONE, code=2),
    hard(12, LOFTQ, {START: "loftq"}, "there is none", START, AMDS, AMDS, {START: "default"}, code=2),
    hard(20, hardware.streams_have_cuda, STREAMS, "streams are off", STREAM, CPU, ONE, severity="notice"),
    hard(20, hardware.streams_have_cuda, STREAMS, "streams are off", STREAM, MAC, AMDS, severity="notice"),
    hard(21, CUDA, NF4, "slow on the CPU", BASE, CPU, ONE, severity="notice"),
    hard(21, CUDA, NF4, "this is an Apple GPU", BASE, MAC, MAC, {BASE: "int8-quanto"}),
    hard(21, CUDA, LION, "this is an AMD GPU", "optimizer", AMDS, ONE),
    hard(21, CUDA, {T5: "int8-bnb"}, f"{T5}=int8-bnb", T5, AMDS, ONE),
    hard(22, KIND, FP8, "needs compute capability 8.9, and NVIDIA A100 has 8.0", BASE, A100, ONE),
    hard(22, KIND, {BASE: "int8-compute"}, "8.0, and NVIDIA V100 has 7.0", BASE, OLD, A100),
    hard(22, KIND, INT4, "NVIDIA V100", BASE, OLD, OLD, {BASE: "int8-quanto"}),
    hard(22, KIND, {BASE: "int4-torchao"}, "NVIDIA V100", BASE, OLD, CPU),
    hard(22, KIND, FP8 | {"gpu_mode": "auto"}, "NVIDIA V100", BASE, MIXED, MIXED, {"gpu_mode": "disabled"}),
    hard(22, KIND, FP8 | {IDS: [1]}, "NVIDIA V100", BASE, MIXED, MIXED, {IDS: [0]}),
    hard(OUR_OWN, hardware.state_is_computable, {"optimizer": "ao-adamwfp8"}, "8.9, and NVIDIA A100 has 8.0",
         "optimizer", A100, ONE),
    hard(48, GPUS, {COUNT: 2}, "there is 1 visible GPU", COUNT, ONE, TWO),
    hard(48, GPUS, {COUNT: 4}, "there are 2 visible GPUs", COUNT, TWO, TWO, {"num_machines": 2}),
    hard(48, GPUS, {IDS: [0, 2]}, "names 2, and there are 2", IDS, TWO, TWO, {IDS: [0, 1]}),
    hard(48, GPUS, {COUNT: 2}, "meet through gloo", COUNT, CPU, CPU, {COUNT: 1}, "notice"),
    hard(OUR_OWN, AWAY, {SWAP: 4}, f"{SWAP} only copies", SWAP, CPU, ONE, None, "notice"),
    hard(OUR_OWN, AWAY, {SAVE: True}, "saves nothing", SAVE, CPU, AMDS, None, "notice"),
    hard(OUR_OWN, AWAY, PARKED, "saves nothing", "gradient_checkpointing_backend", CPU, CPU,
         {"gradient_checkpointing_backend": "torch"}, "notice"),
    hard(OUR_OWN, hardware.apple_trains_small_models, {}, "not train on Apple GPUs", "model_flavour", MAC, MAC,
         {"model_flavour": "nano"}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hardware(case, config):
    speaks_only_when_broken(case, config)


def test_offloading_on_the_cpu_gets_one_notice(config):
    for given in (STREAMS, STREAMS | {STREAM: False}, STREAMS | {"offload_during_startup": True}):
        assert len([p for p in rules.check_hardware(config(given), CPU) if p.severity == "notice"]) == 1


def test_the_kinds_that_work_are_named(config):
    assert hardware.base_is_computable(config({BASE: "fp8-compute"}), A100).fix.startswith(f"{BASE}=int8-compute,")
    assert hardware.base_is_computable(config({BASE: "fp8-compute"}), OLD).fix.startswith(f"{BASE}=int8-quanto,")


def test_a_card_that_does_not_say_what_it_can_is_not_judged(config):
    unknown = machine(gpu("NVIDIA GPU", hardware.UNKNOWN))
    assert hardware.base_is_computable(config({BASE: "fp8-compute"}), unknown) is None


def test_defaults_run_on_every_machine_with_nvidia_or_none(config):
    for place in (CPU, ONE, TWO, OLD, AMDS):
        assert rules.check_hardware(config({}), place) == []
    assert rules.check_hardware(config({"model_flavour": "nano"}), MAC) == []
