"""How long a run trains, from which random seed, how it resumes, computes, saves, and spreads over GPUs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

from simpletuner.schema import GIVEN, Basic, Expert, Former, Ge, Group, Le, Meaning, Unit, When

AVERAGED = When(use_ema=True)
SAGE = (
    "sageattention",
    "sageattention-int8-fp16-triton",
    "sageattention-int8-fp16-cuda",
    "sageattention-int8-fp8-cuda",
)
OPTIMISED = When(dynamo_backend=("auto", "inductor"))
TRACED = When(dynamo_backend=("auto", "inductor", "eager", "aot_eager"))
SHARDED = When(fsdp_enable=True)
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}  # as on the label of a disk


def num_bytes(text: str) -> int:
    """ "100G" -> 100,000,000,000. ValueError for anything else than a number and an optional K, M, G or T."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text.lower())
    if not match:
        raise ValueError("a size is a number with K, M, G or T, such as 100G")
    return int(float(match[1]) * UNITS[match[2]])


def _size(text: str | None) -> str | None:
    if text is not None:
        num_bytes(text)
    return text


class Training(Group, title="Training"):
    output_dir: Annotated[Path, Basic] = Path("simpletuner-results")
    """Where checkpoints, validation images and logs go; a full path is best, and one folder holds one run."""

    max_train_steps: Annotated[int, Ge(0), Unit("steps"), Basic] = 0
    """Length of the run in optimizer steps; give this or num_train_epochs, the other stays 0."""

    num_train_epochs: Annotated[int, Ge(0), Le(1000), Unit("epochs"), Basic] = 0
    """Length of the run in passes over the data; give this or max_train_steps, the other stays 0."""

    strict_epoch_limit: Annotated[bool, Expert] = False
    """Stops at the epoch count even if steps are left; a run given in epochs always does."""

    train_batch_size: Annotated[int, Ge(1), Le(128), Basic] = 1
    """Images in one forward pass; larger is steadier and needs memory, and small sets are best served by 1."""

    gradient_accumulation_steps: Annotated[int, Ge(1)] = 1
    """Forward passes for one update; 2 gives a steadier gradient and takes twice the time per update."""

    seed: Annotated[int, Ge(-1), Le(2147483647)] = 42
    """Start of every random draw; the same seed repeats a run, and -1 draws one, shows it and records it."""

    resume_from_checkpoint: Annotated[str, Basic] = "latest"
    """latest, none, a checkpoint's name or a path; latest is the newest valid one, and damaged ones are named."""

    allow_config_drift: Annotated[bool, Expert] = False
    """Lets a resume go on although batch, data, seed, loss or optimizer changed; the run is then no longer exact."""

    allow_topology_change: Annotated[bool, Expert] = False
    """Lets a resume go on with another number of processes; no image is lost or repeated, the order changes."""

    nonfinite_action: Annotated[
        Literal["rollback", "stop", "skip"],
        Expert,
        Meaning(
            {
                "rollback": "drops up to 3 updates in a row, then goes back once, to the last checkpoint at half rate",
                "stop": "ends with exit code 6 at once",
                "skip": "drops updates as long as they are not 3 in a row",
            }
        ),
    ] = "rollback"
    """What a NaN or Inf in loss or gradient leads to; going on hides a fault in the data, stopping costs the night."""

    deterministic: Annotated[bool, Expert] = False
    """Deterministic kernels: a run repeats bit for bit on one machine, and is slower."""

    stop_timeout: Annotated[float, Ge(1), Unit("seconds"), Expert] = 60.0
    """Time for the emergency checkpoint after a stop signal; too short loses the steps since the last save."""

    i_know_what_i_am_doing: Annotated[bool, Expert] = False
    """Accepts a changed batch size on resume and nothing else; the run is then no longer exact."""


class Ema(Group, title="Training"):
    use_ema: bool = False
    """Keeps a running average of the trained weights; smoother results, for a second copy of them."""

    ema_decay: Annotated[float, Ge(0), Le(0.9999), Expert, AVERAGED] = 0.995
    """How much of the average stays at each update; higher follows more slowly and is smoother."""

    ema_device: Annotated[Literal["cpu", "accelerator"], Expert, AVERAGED] = "cpu"
    """Where the average lives; cpu saves VRAM and costs a copy at each update."""

    ema_update_interval: Annotated[int, Ge(1), Unit("steps"), Expert, AVERAGED] = 1
    """Updates the average every n steps; larger costs less time and follows more coarsely."""

    ema_warmup_steps: Annotated[int, Ge(0), Unit("steps"), Expert, AVERAGED] = 0
    """Until this step the average is a copy, so that the rough start leaves no trace in it."""


class Speed(Group, title="Speed"):
    mixed_precision: Annotated[
        Literal["bf16", "fp16", "no"],
        Basic,
        Meaning({"bf16": "fast, and steady", "fp16": "for cards without bf16, with loss scaling", "no": "fp32"}),
    ] = "bf16"
    """Precision of the computation; "no" is fp32, which is slow on a GPU, not better, and the fastest on most CPUs."""

    attention_mechanism: Annotated[
        Literal[
            "diffusers", "cudnn", "flash-attn-2", "flash-attn-3", "flex", "xformers", "sageattention",
            "sageattention-int8-fp16-triton", "sageattention-int8-fp16-cuda", "sageattention-int8-fp8-cuda",
        ],
        Meaning(
            {
                "diffusers": "PyTorch's scaled dot-product attention; sdpa is a synonym",
                "cudnn": "NVIDIA's kernel",
                "flash-attn-2": "the flash-attn package",
                "flash-attn-3": "the same for Hopper cards",
                "flex": "PyTorch's FlexAttention, compiled",
                "xformers": "memory-efficient attention for older cards",
                "sageattention": "8-bit attention in validation, its own choice of kernel",
                "sageattention-int8-fp16-triton": "the same, written in Triton",
                "sageattention-int8-fp16-cuda": "the same, written in CUDA",
                "sageattention-int8-fp8-cuda": "the same with fp8, for Ada and Hopper cards",
            }
        ),
    ] = "diffusers"  # fmt: skip
    """Attention kernel; some are faster on some cards, and most need a package."""

    sageattention_usage: Annotated[Literal["inference"], Expert, When(attention_mechanism=SAGE)] = "inference"
    """When Sage is used; it has no gradient, so only where none is needed."""

    fuse_qkv_projections: Annotated[bool, Expert] = False
    """Joins the q, k and v products of the frozen base, a little faster; always so, and files keep the names."""

    dynamo_backend: Annotated[
        Literal["auto", "no", "inductor", "eager", "aot_eager", "cudagraphs"],
        Meaning(
            {
                "auto": "on CUDA inductor and recorded steps after a first plain step, elsewhere no",
                "no": "runs the model as written",
                "inductor": "compiles to fast kernels, the usual choice",
                "eager": "traces only, to find graph breaks",
                "aot_eager": "traces the backward pass as well",
                "cudagraphs": "records whole steps and replays them, uncompiled",
            }
        ),
    ] = "auto"
    """Compiles the model: faster steps, for minutes at the start."""

    dynamo_mode: Annotated[
        Literal["", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"], Expert, OPTIMISED
    ] = ""
    """Effort of the compiler; more takes longer to start and runs a little faster."""

    dynamo_fullgraph: Annotated[bool, Expert, TRACED] = False
    """Makes a break in the graph an error instead of a slow spot."""

    dynamo_dynamic: Annotated[bool, Expert, TRACED] = False
    """One graph for all sizes: fewer compilations, slower code."""

    dynamo_use_regional_compilation: Annotated[bool, Expert, TRACED] = True
    """Compiles one block and uses it for all alike, which starts many times sooner; always so."""

    disable_tf32: Annotated[bool, Expert] = False
    """Exact fp32 matrix products on NVIDIA cards; slower, with no visible gain."""

    torch_num_threads: Annotated[int | None, Ge(1), Unit("threads"), Expert] = None
    """CPU threads of PyTorch; unset means 8 or the number of cores if that is less, and more rarely help."""


class Saving(Group, title="Saving"):
    checkpoint_step_interval: Annotated[int, Ge(1), Unit("steps"), Basic, Former("checkpointing_steps")] = 500
    """A complete, resumable checkpoint every n steps; a crash costs at most that many, each save a few seconds."""

    checkpoint_epoch_interval: Annotated[int | None, Ge(1), Unit("epochs")] = None
    """A checkpoint every n whole epochs, besides those of the step interval."""

    checkpoints_total_limit: Annotated[int, Ge(0), Basic, Former("save_total_limit")] = 5
    """How many checkpoints are kept, 0 for all; the newest valid one always stays, older ones cost disk."""

    checkpointing_rolling_steps: Annotated[int, Ge(0), Unit("steps"), Expert] = 0
    """Extra, short-lived checkpoints every n steps, 0 for none; less is lost in a crash, for one more checkpoint of disk."""  # noqa: E501

    checkpoints_rolling_total_limit: Annotated[int, Ge(1), Expert, When(checkpointing_rolling_steps=GIVEN)] = 1
    """How many of the short-lived checkpoints stay."""

    checkpoints_keep_every: Annotated[int, Ge(0), Unit("steps"), Expert] = 0
    """Keeps every checkpoint at a multiple of n steps for ever, outside of the limit; 0 is off."""

    checkpoints_keep_best: Annotated[int, Ge(0), Expert] = 0
    """Keeps the n best checkpoints by checkpoints_best_metric, outside of the limit; 0 is off."""

    checkpoints_best_metric: Annotated[str, Expert, When(checkpoints_keep_best=GIVEN)] = "loss/val/pooled"
    """Which number of metrics.jsonl tells good from bad; the smallest is the best."""

    disk_low_threshold: Annotated[str | None, AfterValidator(_size), Expert] = None
    """Free space wanted before a save, such as 100G; 2.2 times the last checkpoint is always wanted as well."""

    disk_low_action: Annotated[
        Literal["continue", "wait", "stop", "script"],
        Expert,
        Meaning(
            {
                "continue": "skips the save, warns once, and tries again every minute",
                "wait": "pauses the training until there is space",
                "stop": "ends with exit code 7",
                "script": "runs disk_low_script",
            }
        ),
    ] = "continue"
    """What a lack of disk space leads to; the old checkpoint stays either way, and the final save always waits."""

    disk_low_script: Annotated[Path | None, Expert, When(disk_low_action="script")] = None
    """Program that makes room when the disk is low; taken from a local file only, run without a shell."""

    post_checkpoint_script: Annotated[Path | None, Expert] = None
    """Program run in the background after each checkpoint; taken from a local file only, run without a shell."""


class Distributed(Group, title="Distributed"):
    gpu_mode: Annotated[
        Literal["disabled", "auto", "manual"],
        Basic,
        Meaning({"disabled": "one GPU", "auto": "all visible GPUs", "manual": "those of gpu_ids"}),
    ] = "disabled"
    """How many GPUs train; the images of one update grow with their number."""

    gpu_ids: list[Annotated[int, Ge(0)]] | None = None
    """Numbers of the GPUs for gpu_mode=manual; sets CUDA_VISIBLE_DEVICES and the number of processes."""

    num_processes: Annotated[int, Ge(1)] = 1
    """Processes, one for each GPU; above 1 means gpu_mode=manual."""

    num_machines: Annotated[int, Ge(1)] = 1
    """Machines that train together; each runs the same command with its own machine_rank."""

    machine_rank: Annotated[int, Ge(0)] = 0
    """Number of this machine; 0 is the one that the others call."""

    main_process_ip: str = "127.0.0.1"
    """Address of machine 0, as the others reach it."""

    main_process_port: Annotated[int, Ge(1), Le(65535)] = 29500
    """Port of machine 0; two runs on one machine need two."""

    same_network: Annotated[bool, Expert] = True
    """Whether the machines reach each other directly."""

    accelerate_config: Annotated[Path | None, Expert] = None
    """A file of accelerate in place of these options; only if named, one lying elsewhere is not read."""

    accelerate_extra_args: Annotated[str | None, Expert] = None
    """Further words for accelerate launch."""

    find_unused_parameters: Annotated[bool, Expert] = False
    """Looks for weights without a gradient in each step; slower, and rarely needed."""

    fsdp_enable: bool = False
    """Shards weights, gradients and optimizer over the GPUs, for full training; not with a quantised base."""

    fsdp_version: Annotated[int, Ge(2), Le(2), SHARDED] = 2
    """Version of PyTorch's sharding; only the second is used."""

    fsdp_reshard_after_forward: Annotated[bool, Expert, SHARDED] = True
    """Gives gathered weights up between the passes; less VRAM, more traffic."""

    fsdp_cpu_offload: Annotated[bool, Expert, SHARDED] = False
    """Keeps the shards in RAM; the least VRAM, slow."""
