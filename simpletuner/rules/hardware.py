"""What this machine's GPUs must be able to do. These rules run where a run could start, not where a file is checked."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.adapters.options import Adapter
from simpletuner.config import Config
from simpletuner.errors import Problem
from simpletuner.machine import AMD, APPLE, Gpu, Machine
from simpletuner.memory.options import Memory, Offload
from simpletuner.models import families
from simpletuner.models.options import Model
from simpletuner.optim.options import Optimizer
from simpletuner.quantization.kinds import KINDS
from simpletuner.rules.adapter import peft
from simpletuner.rules.findings import error, notice
from simpletuner.rules.precision import BASE
from simpletuner.training.options import Distributed

FP8, FP8_STATE = (8, 9), ("ao-adamwfp8", "ao-adamfp8")  # optimizers that keep their state in it
SUBSTITUTES = ("int8-compute", "int8-quanto", "int8-torchao", "nf4-bnb")  # of much the same use, the fastest first
BITSANDBYTES = {BASE: "-bnb", "text_encoder_1_precision": "-bnb", "text_encoder_2_precision": "-bnb"}  # endings
PROCESSES, IDS = "num_processes", "gpu_ids"
UNKNOWN = (0, 0)  # a driver that does not say
SMALL_WEIGHTS = 1e9  # what an Apple GPU is known to train has fewer


def least(precision: str) -> tuple[int, int]:
    """The compute capability from which a card computes it."""
    return KINDS[precision].capability if precision in KINDS else UNKNOWN


def used(config: Config, machine: Machine) -> tuple[Gpu, ...]:
    """The GPUs that the run would take."""
    distributed, gpus = config[Distributed], machine.gpus
    if distributed.gpu_ids:
        return tuple(gpu for gpu in gpus if gpu.index in distributed.gpu_ids)
    if distributed.gpu_mode == "auto":
        return gpus
    return gpus[: max(1, distributed.num_processes // distributed.num_machines)]


def loftq_has_nvidia(config: Config, machine: Machine) -> Problem | None:
    if peft(config) and config[Adapter].lora_init_type == "loftq" and not machine.gpus:
        message = "lora_init_type=loftq is made by bitsandbytes on an NVIDIA GPU, and there is none"
        return error(message, "lora_init_type", fix="lora_init_type=default")
    return None


def streams_have_cuda(config: Config, machine: Machine) -> Problem | None:
    offload = config[Offload]
    wanted = offload.enable_group_offload and offload.group_offload_use_stream
    if wanted and not machine.gpus and machine.other_gpu != AMD:
        return notice("group_offload_use_stream needs CUDA: streams are off", "group_offload_use_stream")
    return None


def offload_has_somewhere_to_go(config: Config, machine: Machine) -> Problem | None:
    """One word, however many of them there are; `streams_have_cuda` has said enough."""
    offload = config[Offload]
    asked = [
        key
        for key in ("enable_group_offload", "blocks_to_swap", "enable_model_cpu_offload", "offload_during_startup",
                    "offload_during_save")
        if getattr(offload, key)
    ]  # fmt: skip
    asked += ["gradient_checkpointing_backend"] if config[Memory].gradient_checkpointing_backend == "offload" else []
    if machine.has_gpu or not asked or streams_have_cuda(config, machine):
        return None
    return notice(f"without a GPU, {asked[0]} only copies within RAM: the run trains, and saves nothing", *asked)


def bitsandbytes_has_cuda(config: Config, machine: Machine) -> Iterator[Problem]:
    if machine.gpus:
        return
    values = config.values()
    keys = [key for key, ending in BITSANDBYTES.items() if values[key].endswith(ending)]
    keys += ["optimizer"] if config[Optimizer].optimizer.startswith("bnb-") else []
    for key in keys:
        said, fix = f"{key}={values[key]}", "optimizer=adamw_bf16" if key == "optimizer" else f"{key}=int8-quanto"
        if machine.other_gpu:
            message = f"{said} is made by bitsandbytes for NVIDIA GPUs, and this is an {machine.other_gpu}"
            yield error(message, key, fix=fix, area="hardware")
        else:
            message = f"{said}: bitsandbytes is slow on the CPU"
            yield notice(message, key, fix=fix, area="hardware")


def base_is_computable(config: Config, machine: Machine) -> Problem | None:
    precision = config[Memory].base_model_precision
    cards = [gpu for gpu in used(config, machine) if gpu.capability != UNKNOWN]
    weak = [gpu for gpu in cards if gpu.capability < least(precision)]
    if not weak:
        return None
    worst = min(weak, key=lambda gpu: gpu.capability)
    needed, has = (f"{major}.{minor}" for major, minor in (least(precision), worst.capability))
    message = f"{BASE}={precision} needs compute capability {needed}, and {worst.name} has {has}"
    works = [kind for kind in SUBSTITUTES if worst.capability >= least(kind)]
    return error(message, BASE, fix=f"{BASE}={', '.join(works[:-1])} or {works[-1]}", area="hardware")


def state_is_computable(config: Config, machine: Machine) -> Problem | None:
    name = config[Optimizer].optimizer
    cards = [gpu for gpu in used(config, machine) if UNKNOWN < gpu.capability < FP8]
    if name not in FP8_STATE or not cards:
        return None
    major, minor = cards[0].capability
    message = f"{name} keeps its state in fp8, which needs compute capability 8.9, and {cards[0].name} has"
    return error(f"{message} {major}.{minor}", "optimizer", fix="optimizer=ao-adamw8bit", area="hardware")


def processes_have_gpus(config: Config, machine: Machine) -> Iterator[Problem]:
    distributed, gpus = config[Distributed], len(machine.gpus)
    here = distributed.num_processes // distributed.num_machines
    visible = f"there {'is' if gpus == 1 else 'are'} {gpus or 'no'} visible GPU{'s' * (gpus != 1)}"
    absent = [index for index in distributed.gpu_ids or () if index >= gpus]
    if machine.other_gpu:
        return  # its driver is not asked how many there are
    if not gpus and max(here, len(absent)) > 1:
        message = f"{max(here, len(absent))} processes and no GPU: they run on the CPU and meet through gloo"
        yield notice(message, PROCESSES, area="hardware")
    elif absent:
        message = f"{IDS} names {', '.join(str(index) for index in absent)}, and {visible}, counted from 0"
        yield error(message, IDS, fix=f"{IDS} from 0 to {gpus - 1}" if gpus else f"remove {IDS}", area="hardware")
    elif here > max(gpus, 1):
        message = f"{PROCESSES} is {distributed.num_processes}, and {visible}"
        fix = f"{PROCESSES}={gpus * distributed.num_machines}, or gpu_mode=auto"
        yield error(message, PROCESSES, fix=fix, area="hardware")


def apple_trains_small_models(config: Config, machine: Machine) -> Problem | None:
    model = config[Model]
    if machine.other_gpu == APPLE and families()[model.model_family].shapes(model).num_weights > SMALL_WEIGHTS:
        message = f"model_flavour={model.model_flavour}: full-size flavours do not train on Apple GPUs"
        fix = "use a machine with an NVIDIA GPU; nano runs anywhere"
        return error(message, "model_flavour", fix=fix, area="hardware")
    return None
