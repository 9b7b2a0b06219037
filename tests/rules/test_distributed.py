import pytest
from rules.cases import Case, speaks_only_when_broken

from simpletuner.rules import distributed

SHARDS, MODE, IDS, COUNT = distributed.SHARDS, distributed.MODE, distributed.IDS, distributed.COUNT
MACHINES, RANK, ADDRESS = distributed.MACHINES, distributed.RANK, "main_process_ip"
BASE = "base_model_precision"
TWO = {MACHINES: 2, COUNT: 2}
CASES = [
    *(
        Case(46, distributed.shards_are_cut_alone, {SHARDS: True, key: value}, said, (SHARDS, key), mended)
        for key, value, said, mended in (
            (BASE, "int8-quanto", f"{BASE}=int8-quanto", {BASE: "bf16"}),
            ("enable_group_offload", True, "enable_group_offload=true", {"enable_group_offload": False}),
            ("enable_model_cpu_offload", True, "enable_model_cpu_offload=true", {SHARDS: False}),
            ("blocks_to_swap", 4, "blocks_to_swap=4", {"blocks_to_swap": 0, "fsdp_cpu_offload": True}),
            ("optimizer", "bnb-adamw8bit", "optimizer=bnb-adamw8bit", {"optimizer": "ao-adamw8bit"}),
            ("optimizer", "optimi-lion", "optimizer=optimi-lion", {"optimizer": "adamw_bf16"}),
            ("optimizer", "soap", "optimizer=soap", {"optimizer": "torch-adamw"}),
        )
    ),
    Case(47, distributed.processes_are_counted_once, {MODE: "disabled", COUNT: 2}, "uses one GPU", (MODE, COUNT),
         {MODE: "manual"}),
    Case(47, distributed.processes_are_counted_once, {IDS: [0, 1], COUNT: 3}, "names 2 GPUs, and num_processes is 3",
         (IDS, COUNT), {COUNT: 2}),
    Case(47, distributed.processes_are_counted_once, {IDS: [1], COUNT: 2}, "names 1 GPU,", (IDS, COUNT), TWO),
    Case(49, distributed.machines_find_each_other, TWO, "nothing says where machine 0 is", (MACHINES, ADDRESS),
         {ADDRESS: "10.0.0.1"}),
    Case(49, distributed.machines_find_each_other, {RANK: 1}, "is none of 1 machine,", (RANK, MACHINES), {RANK: 0}),
    Case(49, distributed.machines_find_each_other, {**TWO, ADDRESS: "10.0.0.1", RANK: 2}, "is none of 2 machines",
         (RANK, MACHINES), {RANK: 1}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_distributed(case, config):
    speaks_only_when_broken(case, config)


def test_a_count_alone_means_manual_and_ids_give_the_count(config):
    assert list(distributed.processes_are_counted_once(config({COUNT: 2}))) == []
    assert list(distributed.processes_are_counted_once(config({IDS: [0, 1]}))) == []


def test_all_that_shards_do_not_go_with_is_one_finding(config):
    broken = {SHARDS: True, BASE: "nf4-bnb", "blocks_to_swap": 4, "optimizer": "soap"}
    problem = distributed.shards_are_cut_alone(config(broken))
    assert problem.keys == (SHARDS, BASE, "blocks_to_swap", "optimizer") and "fsdp_cpu_offload" in problem.fix
