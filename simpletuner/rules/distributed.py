"""Several GPUs and several machines: what shards together, and who counts as whom."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config import Config
from simpletuner.errors import Problem
from simpletuner.memory.options import Memory
from simpletuner.optim.options import Optimizer
from simpletuner.rules.findings import error
from simpletuner.training.options import Distributed

SHARDS = "fsdp_enable"
NOT_SHARDED = ("bnb-", "optimi-", "soap")  # optimizers whose state cannot be cut
MODE, IDS, COUNT, RANK, MACHINES = "gpu_mode", "gpu_ids", "num_processes", "machine_rank", "num_machines"


def shards_are_cut_alone(config: Config) -> Problem | None:
    """FSDP moves whole weights between GPUs: none may be packed, or moved by something else."""
    values = config.values()
    moving = [key for key in ("enable_group_offload", "enable_model_cpu_offload", "blocks_to_swap") if values[key]]
    packed = ["base_model_precision"] if config[Memory].quantised else []
    uncut = ["optimizer"] if config[Optimizer].optimizer.startswith(NOT_SHARDED) else []
    keys = [*packed, *moving, *uncut]
    if not config[Distributed].fsdp_enable or not keys:
        return None
    said = ", ".join(f"{key}={str(values[key]).lower()}" for key in keys)
    cures = ["base_model_precision=no_change"] * bool(packed)
    cures += ["fsdp_cpu_offload in place of other offloading"] * bool(moving)
    cures += ["an optimizer such as adamw_bf16, torch-adamw or ao-adamw8bit"] * bool(uncut)
    return error(f"{SHARDS} does not go with {said}", SHARDS, *keys, fix="; ".join(cures))


def processes_are_counted_once(config: Config) -> Iterator[Problem]:
    distributed = config[Distributed]
    mode, ids, count = distributed.gpu_mode, distributed.gpu_ids, distributed.num_processes
    if mode == "disabled" and MODE in config.given and count > 1:
        message = f"{MODE}=disabled uses one GPU, and {COUNT} is {count}"
        yield error(message, MODE, COUNT, fix=f"{MODE}=manual, or {COUNT}=1")
    if ids and COUNT in config.given and count != len(ids) * distributed.num_machines:
        message = f"{IDS} names {len(ids)} GPU{'s' * (len(ids) != 1)}, and {COUNT} is {count}"
        yield error(message, IDS, COUNT, fix=f"remove {COUNT}: it follows from {IDS}")


def machines_find_each_other(config: Config) -> Iterator[Problem]:
    distributed = config[Distributed]
    machines, rank = distributed.num_machines, distributed.machine_rank
    if machines > 1 and "main_process_ip" not in config.given:
        message = f"{MACHINES} is {machines}, and nothing says where machine 0 is"
        yield error(message, MACHINES, "main_process_ip", fix="main_process_ip=ADDRESS, as the others reach it")
    if rank >= machines:
        message = f"{RANK} {rank} is none of {machines} machine{'s' * (machines != 1)}, which count from 0"
        yield error(message, RANK, MACHINES, fix=f"{RANK} from 0 to {machines - 1}, or a larger {MACHINES}")
