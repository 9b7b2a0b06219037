"""What the base weighs, where weights wait while they are not used, and what the backward pass recomputes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from simpletuner.schema import Basic, Expert, Ge, Group, Gt, Le, Meaning, Unit, When

CASTS = ("bf16", "fp16", "fp32")  # the rest of base_model_precision quantises
PRECISIONS = Meaning(
    {
        "no_change": "that of mixed_precision",
        "bf16": "2 bytes a weight",
        "fp16": "2 bytes a weight, for cards without bf16",
        "fp32": "4 bytes a weight",
        "int8-quanto": "1 byte a weight, no loss of quality",
        "int4-quanto": "half a byte; wants bf16 hardware",
        "int2-quanto": "a quarter of a byte, coarse",
        "fp8-quanto": "1 byte, floating point",
        "int8-torchao": "1 byte a weight, no loss of quality",
        "int4-torchao": "half a byte; wants bf16 hardware",
        "fp8-torchao": "1 byte, floating point",
        "nf4-bnb": "half a byte, less stable; NVIDIA",
        "int8-bnb": "1 byte a weight; NVIDIA",
        "fp8-compute": "1 byte, multiplied in 8 bits as well: the fastest; compute capability 8.9",
        "int8-compute": "1 byte, multiplied in 8 bits as well; compute capability 8.0",
    }
)
TEXT_PRECISIONS = Meaning({**PRECISIONS.lines, "no_change": "bf16"})
CHECKPOINTED = When(gradient_checkpointing=True)
COMPILED = When(dynamo_backend=("auto", "inductor", "aot_eager"))
GROUPED = When(enable_group_offload=True)

Storage = Literal[
    "no_change", "int8-quanto", "int4-quanto", "int2-quanto", "fp8-quanto", "int8-torchao", "int4-torchao",
    "fp8-torchao", "nf4-bnb", "int8-bnb",
]  # fmt: skip # of text encoders; the -compute kinds are for training


class Memory(Group, title="Memory and precision"):
    base_model_precision: Annotated[
        Literal[
            "no_change", "bf16", "fp16", "fp32", "int8-quanto", "int4-quanto", "int2-quanto", "fp8-quanto",
            "int8-torchao", "int4-torchao", "fp8-torchao", "nf4-bnb", "int8-bnb", "fp8-compute", "int8-compute",
        ],
        Basic,
        PRECISIONS,
    ] = "no_change"  # fmt: skip
    """Storage of the base, frozen or trained; fewer bytes fit smaller cards, fp32 needs twice the memory of bf16."""

    base_model_default_dtype: Annotated[Literal["bf16", "fp32"], Expert] = "bf16"
    """Precision of base weights for which base_model_precision makes no choice; fp32 is exact and twice as large."""

    quantize_via: Literal["auto", "accelerator", "cpu", "pipeline"] = "auto"
    """Where the base is quantised; auto takes one tensor at a time, so that neither RAM nor GPU sees a peak."""

    quantize_cache: Annotated[bool, Expert] = True
    """Keeps the quantised weights on disk, about 12 GB for int8; the next start skips the quantising."""

    quantize_cache_dir: Annotated[Path | None, Expert, When(quantize_cache=True)] = None
    """Where quantised weights are kept, to be shared by all runs; unset means ~/.cache/simpletuner/weights."""

    quantization_config: Annotated[dict[str, Any] | str | None, Expert, When(quantize_via="pipeline")] = None
    """Further settings for quantize_via=pipeline, as an object or a file; for adapters only."""

    text_encoder_1_precision: Annotated[Storage, TEXT_PRECISIONS] = "no_change"
    """Storage of CLIP while captions are encoded; saves little, and the embeddings are made anew."""

    text_encoder_2_precision: Annotated[Storage, TEXT_PRECISIONS] = "no_change"
    """Storage of T5 while captions are encoded; int8 saves about 4.6 GB, and the embeddings are made anew."""

    gradient_checkpointing: Annotated[bool, Basic] = True
    """Recomputes activations in the backward pass: about a third slower, and the only way below 24 GB."""

    gradient_checkpointing_interval: Annotated[int, Ge(1), Unit("blocks"), CHECKPOINTED] = 1
    """Recomputes only every n-th block: 2 is half of them, 3 a third; faster, for more memory."""

    gradient_checkpointing_backend: Annotated[
        Literal["torch", "offload"],
        Expert,
        CHECKPOINTED,
        Meaning({"torch": "on the device, the fastest place", "offload": "in RAM: same results, less VRAM, slower"}),
    ] = "torch"
    """Where the inputs of recomputed blocks wait."""

    activation_memory_budget: Annotated[float, Gt(0), Le(1), Expert, COMPILED] = 1.0
    """Share of the activations that compiled blocks may keep: norms and GELU are made again first, products last; 0.9 keeps about 0.6 of them."""  # noqa: E501

    accelerator_cache_clear_interval: Annotated[int, Ge(0), Unit("steps"), Expert] = 0
    """Empties PyTorch's memory cache every n steps, 0 for never; a last resort that slows each of those steps."""

    @property
    def quantised(self) -> bool:
        """Whether the base is kept in fewer bits than it is computed in."""
        return self.base_model_precision not in ("no_change", *CASTS)

    @property
    def text_kinds(self) -> tuple[str, str]:
        """What the matrices of CLIP and of T5 are quantised to; empty where they are not."""
        first, second = self.text_encoder_1_precision, self.text_encoder_2_precision
        return "" if first == "no_change" else first, "" if second == "no_change" else second

    def storage(self, mixed_precision: str) -> str:
        """What the base is kept in, in one word: a kind of quantised weights, or bf16, fp16, fp32."""
        return self.base_model_precision if self.quantised else self.base_dtype(mixed_precision)

    def base_dtype(self, mixed_precision: str) -> str:
        """What the base's weights are kept in where the computation is in `mixed_precision`: bf16, fp16 or fp32."""
        if self.base_model_precision in CASTS:
            return self.base_model_precision
        return "fp32" if mixed_precision == "no" or self.base_model_default_dtype == "fp32" else mixed_precision


class Offload(Group, title="Memory and precision"):
    offload_during_startup: bool = False
    """Takes each part off the GPU between its batches while caches are made; slower, for when caching runs out of memory."""  # noqa: E501

    enable_group_offload: bool = False
    """The transformer's weights live in RAM and visit the GPU in groups; far less VRAM, slower."""

    group_offload_type: Annotated[
        Literal["block_level", "leaf_level"],
        GROUPED,
        Meaning({"block_level": "several blocks", "leaf_level": "one block at a time: the least VRAM, the slowest"}),
    ] = "block_level"
    """Size of a group."""

    group_offload_blocks_per_group: Annotated[int, Ge(1), Le(57), Unit("blocks"), GROUPED] = 1
    """Blocks in one group; more means fewer and larger transfers, and more VRAM."""

    group_offload_use_stream: Annotated[bool, GROUPED] = False
    """Copies the next group while the present one computes; faster, for pinned RAM. CUDA only."""

    group_offload_to_disk_path: Annotated[Path | None, GROUPED] = None
    """Keeps the groups in this folder instead of RAM; bearable only on a fast local NVMe."""

    group_offload_text_encoder: Annotated[bool, Expert, GROUPED] = False
    """Moves the text encoders in groups too, for cards that T5 does not fit; caching takes longer."""

    group_offload_vae: Annotated[bool, Expert, GROUPED] = False
    """Moves the VAE in groups too; saves little, caching and validation take longer."""

    enable_model_cpu_offload: bool = False
    """Whole components wait in RAM and only the active one is on the GPU; simple, saves at start and in validation."""

    blocks_to_swap: Annotated[int, Ge(0), Le(56), Unit("blocks")] = 0
    """Streams this many blocks from pinned RAM; more blocks, less VRAM, slower. simpletuner plan names the fewest that fit."""  # noqa: E501

    offload_during_save: Annotated[bool, Expert] = False
    """Makes room on the GPU while a checkpoint is written; the save takes longer."""
