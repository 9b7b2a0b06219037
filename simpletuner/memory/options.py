"""What the base weighs, and what is kept or recomputed in the backward pass."""

from __future__ import annotations

from typing import Annotated, Literal

from simpletuner.schema import Basic, Expert, Ge, Group, Meaning, Unit

PRECISIONS = Meaning(
    {
        "no_change": "that of mixed_precision",
        "bf16": "2 bytes a weight",
        "fp16": "2 bytes a weight, for cards without bf16",
        "fp32": "4 bytes a weight",
    }
)


class Memory(Group, title="Memory and precision"):
    base_model_precision: Annotated[Literal["no_change", "bf16", "fp16", "fp32"], Basic, PRECISIONS] = "no_change"
    """Storage of the base, frozen or trained; fewer bytes fit smaller cards, fp32 needs twice the memory of bf16."""

    base_model_default_dtype: Annotated[Literal["bf16", "fp32"], Expert] = "bf16"
    """Precision of base weights for which base_model_precision makes no choice; fp32 is exact and twice as large."""

    gradient_checkpointing: Annotated[bool, Basic] = True
    """Recomputes activations in the backward pass: about a third slower, and the only way below 24 GB."""

    gradient_checkpointing_interval: Annotated[int, Ge(1), Unit("blocks")] = 1
    """Recomputes only every n-th block: 2 is half of them, 3 a third; faster, for more memory."""

    gradient_checkpointing_backend: Annotated[Literal["torch"], Expert] = "torch"
    """Where the inputs of recomputed blocks wait; torch leaves them on the device, the fastest place."""

    accelerator_cache_clear_interval: Annotated[int, Ge(0), Unit("steps"), Expert] = 0
    """Empties PyTorch's memory cache every n steps, 0 for never; a last resort that slows each of those steps."""

    def base_dtype(self, mixed_precision: str) -> str:
        """What the base's weights are kept in where the computation is in `mixed_precision`: bf16, fp16 or fp32."""
        if self.base_model_precision != "no_change":
            return self.base_model_precision
        return "fp32" if mixed_precision == "no" or self.base_model_default_dtype == "fp32" else mixed_precision
