"""The optimizers by name, as strings: nothing is imported until one is chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from simpletuner.registry import Entry

BNB, AO, OPTIMI = "simpletuner.optim.bnb:Bnb", "simpletuner.optim.lowbit:Ao", "simpletuner.optim.optimi:Optimi"
LIBRARY, TORCHAO, EXTRA = "bitsandbytes", "torchao", "optimizers"  # the extras that install them
ADAM = {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 1e-2}
LION = {"betas": (0.9, 0.99), "weight_decay": 0.0}
OLD_ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
SLOW = {"betas": (0.9, 0.999, 0.9999), "alpha": 5.0, "eps": 1e-8, "weight_decay": 1e-2}
ADAN = {"betas": (0.98, 0.92, 0.999), "weight_decay": 2e-2, "kahan_sum": None}
KAHAN = {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.0}

TABLE: dict[str, Entry] = {
    "adamw_bf16": Entry(
        "simpletuner.optim.adamw_bf16:AdamWBF16",
        "AdamW for bf16 weights with stochastic rounding: little memory and steady",
        defaults=ADAM,
    ),
    "torch-adamw": Entry("torch.optim:AdamW", "the reference AdamW, state in the precision of the weights"),
    "torch-adam": Entry("torch.optim:Adam", "Adam, whose weight decay is part of the gradient"),
    "torch-radam": Entry("torch.optim:RAdam", "Adam that warms itself up"),
    "torch-nadam": Entry("torch.optim:NAdam", "Adam that looks one step ahead"),
    "torch-adamax": Entry("torch.optim:Adamax", "Adam scaled by the largest recent gradient"),
    "torch-adafactor": Entry("torch.optim:Adafactor", "factored second moment: almost no state for matrices"),
    "torch-sgd": Entry("torch.optim:SGD", "the plain gradient; needs a much higher rate"),
    "torch-rmsprop": Entry("torch.optim:RMSprop", "gradient over its recent size"),
    "torch-adagrad": Entry("torch.optim:Adagrad", "gradient over its size since the start"),
    "torch-adadelta": Entry("torch.optim:Adadelta", "adapts its own step size; wants a rate near 1"),
    "torch-asgd": Entry("torch.optim:ASGD", "plain gradient with a slowly falling rate"),
    "bnb-adamw": Entry(BNB + "AdamW", "AdamW with 32-bit state; NVIDIA", LIBRARY, ADAM),
    "bnb-adamw8bit": Entry(
        BNB + "AdamW8bit", "AdamW with 8-bit state: a quarter of the memory, steady on nf4; NVIDIA", LIBRARY, ADAM
    ),
    "bnb-adamw-paged": Entry(BNB + "PagedAdamW", "bnb-adamw whose state moves to RAM under pressure", LIBRARY, ADAM),
    "bnb-adamw8bit-paged": Entry(
        BNB + "PagedAdamW8bit", "bnb-adamw8bit whose state moves to RAM under pressure", LIBRARY, ADAM
    ),
    "bnb-lion": Entry(BNB + "Lion", "Lion with 32-bit state; NVIDIA", LIBRARY, LION),
    "bnb-lion8bit": Entry(BNB + "Lion8bit", "Lion with 8-bit state; NVIDIA", LIBRARY, LION),
    "bnb-lion-paged": Entry(BNB + "PagedLion", "bnb-lion whose state moves to RAM under pressure", LIBRARY, LION),
    "bnb-lion8bit-paged": Entry(
        BNB + "PagedLion8bit", "the smallest of all; may collapse on an nf4 base", LIBRARY, LION
    ),
    "bnb-ademamix": Entry(BNB + "AdEMAMix", "AdamW with a second, long memory; NVIDIA, not for nf4", LIBRARY, SLOW),
    "bnb-ademamix8bit": Entry(BNB + "AdEMAMix8bit", "the same with 8-bit state", LIBRARY, SLOW),
    "bnb-ademamix-paged": Entry(
        BNB + "PagedAdEMAMix", "bnb-ademamix whose state moves to RAM under pressure", LIBRARY, SLOW
    ),
    "bnb-ademamix8bit-paged": Entry(
        BNB + "PagedAdEMAMix8bit", "bnb-ademamix8bit whose state moves to RAM under pressure", LIBRARY, SLOW
    ),
    "bnb-adam": Entry(BNB + "Adam", "Adam with 32-bit state; NVIDIA", LIBRARY, OLD_ADAM),
    "bnb-adam8bit": Entry(BNB + "Adam8bit", "Adam with 8-bit state; NVIDIA", LIBRARY, OLD_ADAM),
    "bnb-adagrad": Entry(BNB + "Adagrad", "Adagrad with 32-bit state; NVIDIA", LIBRARY, {"eps": 1e-10}),
    "bnb-adagrad8bit": Entry(BNB + "Adagrad8bit", "Adagrad with 8-bit state; NVIDIA", LIBRARY, {"eps": 1e-10}),
    "ao-adamw8bit": Entry(AO + "AdamW8bit", "AdamW with 8-bit state, any card", TORCHAO, ADAM),
    "ao-adamw4bit": Entry(AO + "AdamW4bit", "AdamW with 4-bit state, the coarsest", TORCHAO, ADAM),
    "ao-adamwfp8": Entry(AO + "AdamWFp8", "AdamW with fp8 state; compute capability 8.9", TORCHAO, ADAM),
    "optimi-lion": Entry(
        OPTIMI + "Lion", "the sign of the momentum: little memory, may collapse on an nf4 base", EXTRA, LION
    ),
    "optimi-stableadamw": Entry(
        OPTIMI + "StableAdamW", "AdamW that clips its own updates", EXTRA, KAHAN | {"weight_decay": 1e-2}
    ),
    "optimi-adamw": Entry(OPTIMI + "AdamW", "AdamW with a shorter memory of the gradient's size", EXTRA, KAHAN),
    "optimi-adam": Entry(OPTIMI + "Adam", "Adam with a shorter memory of the gradient's size", EXTRA, KAHAN),
    "optimi-adan": Entry(
        OPTIMI + "Adan",
        "looks ahead along the gradient's change; much state",
        EXTRA,
        ADAN,
    ),
    "optimi-radam": Entry(OPTIMI + "RAdam", "Adam that warms itself up", EXTRA, KAHAN),
    "optimi-ranger": Entry(OPTIMI + "Ranger", "RAdam that averages towards a slow copy", EXTRA, KAHAN),
    "optimi-sgd": Entry(OPTIMI + "SGD", "the plain gradient", EXTRA, {"momentum": 0.0}),
}
TABLE["adafactor"] = TABLE["torch-adafactor"]
TABLE["ao-adamfp8"] = Entry(AO + "AdamWFp8", "another name of ao-adamwfp8", TORCHAO, ADAM)

CLIPS_ITSELF = frozenset(("optimi-stableadamw",))  # the gradient is measured and not limited
SMALL = 4096  # numbers of a tensor below which its state stays as precise as its weights


@dataclass(frozen=True)
class State:
    """What an optimizer keeps of one trained weight."""

    numbers: float = 2.0
    bits: int = 0  # of one of them; 0: as many as the weight has
    block: int = 0  # numbers that share a scale in fp32

    def bytes(self, size: int, each: int) -> int:
        """Of a tensor of `size` weights that take `each` bytes."""
        if not self.bits or (self.block and size < SMALL):
            return round(size * self.numbers * (each if not self.bits else max(each, 4)))
        scales = math.ceil(size / self.block) * 4 if self.block else 0
        return round(self.numbers * (size * self.bits / 8 + scales))


BITS32, BITS8 = {"bits": 32}, {"bits": 8, "block": 256}
STATE: dict[str, State] = {
    **dict.fromkeys(("torch-sgd", "torch-adafactor", "adafactor", "optimi-sgd"), State(0.0)),  # adafactor keeps rows
    **dict.fromkeys(("torch-rmsprop", "torch-adagrad", "optimi-lion"), State(1.0)),
    **dict.fromkeys(("optimi-ranger",), State(3.0)),
    "optimi-adan": State(4.0),
    **dict.fromkeys(("bnb-adamw", "bnb-adamw-paged", "bnb-adam"), State(2.0, **BITS32)),
    **dict.fromkeys(("bnb-adamw8bit", "bnb-adamw8bit-paged", "bnb-adam8bit"), State(2.0, **BITS8)),
    **dict.fromkeys(("bnb-lion", "bnb-lion-paged", "bnb-adagrad"), State(1.0, **BITS32)),
    **dict.fromkeys(("bnb-lion8bit", "bnb-lion8bit-paged", "bnb-adagrad8bit"), State(1.0, **BITS8)),
    **dict.fromkeys(("bnb-ademamix", "bnb-ademamix-paged"), State(3.0, **BITS32)),
    **dict.fromkeys(("bnb-ademamix8bit", "bnb-ademamix8bit-paged"), State(3.0, **BITS8)),
    **dict.fromkeys(("ao-adamw8bit", "ao-adamwfp8", "ao-adamfp8"), State(2.0, **BITS8)),
    "ao-adamw4bit": State(2.0, bits=4, block=128),
}


def state_bytes(name: str, sizes: Iterable[int], each: int, arguments: Mapping[str, Any] | None = None) -> int:
    """Bytes of state for tensors of these sizes, whose weights take `each` bytes. arguments: of optimizer_config.

    State that is paged counts as well: it leaves the device only under pressure.
    """
    state = STATE.get(name, State())
    if (arguments or {}).get("rounding") == "kahan" or (name.startswith("optimi-") and each == 2):
        state = replace(state, numbers=state.numbers + 1)  # what rounding cut off
    return sum(state.bytes(size, each) for size in sizes)


def numbers_kept(name: str) -> float:
    """State of a large tensor, in numbers of the precision of its weights for each weight."""
    size = 2**20
    return state_bytes(name, [size], 4) / (4 * size)
