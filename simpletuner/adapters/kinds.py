"""The ways to train, without torch: a small adapter on a frozen model, or all of the model's own weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simpletuner.registry import Entry


@dataclass(frozen=True)
class Kind:
    """One value of `model_type`: the class behind it, and how what it trains is named on disk."""

    name: str
    title: str  # of its result, for people
    entry: Entry  # of the torch half, which fulfils protocols.Adapter
    rate: float  # learning rate unless set
    state: str  # file or folder of a checkpoint that holds the exact training weights
    export: str  # file or folder of a checkpoint that other tools read; may be the same
    result: str  # what a finished run leaves in its output directory
    base_stays: bool  # the base model lies frozen beneath; otherwise training begins with it and moves away

    def load(self) -> Any:
        """The class of the torch half."""
        return self.entry.load()

    @property
    def copies(self) -> int:
        """How often a checkpoint holds what is trained: once if the export is the exact state as well."""
        return len({self.state, self.export})

    @property
    def published(self) -> str:
        """Where `export` lies at the end of a run: the result itself, or a part of the whole model that it is."""
        return self.result if self.base_stays else f"{self.result}/{self.export}"


LORA = "pytorch_lora_weights.safetensors"  # the name that other tools look for
KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "lora",
            "LoRA",
            Entry("simpletuner.adapters.lora:Lora", "a small adapter on the frozen model"),
            rate=1e-4,
            state="state/adapter.safetensors",
            export=LORA,
            result=LORA,
            base_stays=True,
        ),
        Kind(
            "full",
            "model",
            Entry("simpletuner.adapters.full:Full", "every weight of the transformer"),
            rate=1e-5,
            state="transformer",
            export="transformer",
            result="pipeline",
            base_stays=False,
        ),
    )
}
