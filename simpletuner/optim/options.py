"""How the gradient becomes a change of the weights: the update rule, its rate and its limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from simpletuner.optim.table import CLIPS_ITSELF, TABLE
from simpletuner.schema import Basic, Expert, Former, Ge, Group, Gt, Le, Lt, Meaning, Unit, When

# Optimizers that are known and not in the table yet.
TO_COME = {
    "adamw_schedulefree": "needs no schedule; wants a constant one",
    "prodigy": "finds its own rate; give 1.0",
    "soap": "AdamW in a rotated basis: learns fast, wants 24 GB or more",
    "muon": "orthogonal updates for matrices, AdamW for the rest",
}
OPTIMIZERS = Meaning({**{name: entry.help for name, entry in TABLE.items()}, **TO_COME})
FALLING = ("linear", "cosine", "cosine_with_restarts", "polynomial", "sine")
SCHEDULES = Meaning(
    {
        "constant": "stays at the full rate",
        "constant_with_warmup": "the same; the usual name",
        "linear": "falls in a straight line to lr_end",
        "cosine": "falls slowly, then fast, then slowly to lr_end",
        "cosine_with_restarts": "falls along the cosine lr_num_cycles times",
        "polynomial": "falls with the bend of lr_power",
        "sine": "falls and rises again lr_num_cycles times",
    }
)


class Optimizer(Group, title="Optimizer"):
    learning_rate: Annotated[float | None, Gt(0), Le(1), Basic] = None
    """Size of each update; unset, 1e-4 for a LoRA (1e-3 burns it, 1e-5 teaches it little) and 1e-5 for a full model."""

    optimizer: Annotated[
        Literal[
            "adamw_bf16", "torch-adamw", "torch-adam", "torch-radam", "torch-nadam", "torch-adamax", "torch-adafactor",
            "torch-sgd", "torch-rmsprop", "torch-adagrad", "torch-adadelta", "torch-asgd", "adafactor",
            "adamw_schedulefree", "prodigy", "soap", "muon", "optimi-lion", "optimi-stableadamw", "optimi-adamw",
            "optimi-adam", "optimi-adan", "optimi-radam", "optimi-ranger", "optimi-sgd", "bnb-adamw", "bnb-adamw8bit",
            "bnb-adamw-paged", "bnb-adamw8bit-paged", "bnb-lion", "bnb-lion8bit", "bnb-lion-paged",
            "bnb-lion8bit-paged", "bnb-ademamix", "bnb-ademamix8bit", "bnb-ademamix-paged", "bnb-ademamix8bit-paged",
            "bnb-adam", "bnb-adam8bit", "bnb-adagrad", "bnb-adagrad8bit", "ao-adamw8bit", "ao-adamw4bit",
            "ao-adamwfp8", "ao-adamfp8",
        ],
        Basic,
        OPTIMIZERS,
    ] = "adamw_bf16"  # fmt: skip
    """The update rule; decides how steadily it learns and how much memory its state takes."""

    optimizer_config: Annotated[dict[str, Any] | str | None, Expert] = None
    """Further arguments, k=v,k=v or an object; "rounding=kahan" makes adamw_bf16 finer and takes more memory."""

    optimizer_beta1: Annotated[float | None, Ge(0), Lt(1), Expert, Former("adam_beta1")] = None
    """Memory of the gradient; higher is smoother and slower to turn. Unset means the optimizer's own."""

    optimizer_beta2: Annotated[float | None, Ge(0), Lt(1), Expert, Former("adam_beta2")] = None
    """Memory of the squared gradient; higher is steadier and slower to adapt. Unset means the optimizer's own."""

    adam_weight_decay: Annotated[float | None, Ge(0), Expert] = None
    """Pulls weights towards zero, against over-fitting at the price of strength. Unset means the optimizer's own."""

    adam_epsilon: Annotated[float | None, Gt(0), Expert] = None
    """Keeps division by the gradient's size finite; larger damps tiny gradients. Unset means the optimizer's own."""

    lr_scheduler: Annotated[
        Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "sine"],
        Basic,
        SCHEDULES,
    ] = "constant_with_warmup"
    """How the rate moves after warm-up; a falling rate ends calmer, but must know where the run ends."""

    lr_warmup_steps: Annotated[int, Ge(0), Unit("steps")] = 0
    """Steps to climb to the full rate, for every scheduler; protects a fresh start and costs those steps."""

    lr_end: Annotated[float, Ge(0), Expert, When(lr_scheduler=FALLING)] = 4e-7
    """Where a falling rate ends; zero wastes the last steps."""

    lr_num_cycles: Annotated[int, Ge(1), Expert, When(lr_scheduler=("cosine_with_restarts", "sine"))] = 1
    """How often the rate falls; each restart shakes the weights loose again."""

    lr_power: Annotated[float, Ge(0.1), Expert, When(lr_scheduler="polynomial")] = 0.8
    """Bend of the polynomial; above 1 falls early, below 1 falls late."""

    lr_scale: Annotated[bool, Expert] = False
    """Multiplies the rate by batch x accumulation x processes; keeps the pace per image, often too much for Adam."""

    lr_scale_sqrt: Annotated[bool, Expert] = False
    """Multiplies the rate by the root of that number instead, which suits Adam better."""

    max_grad_norm: Annotated[float, Ge(0)] = 2.0
    """Limit on the gradient, 0 for none; low values protect the model and slow the learning."""

    grad_clip_method: Annotated[Literal["norm", "value"], Expert] = "norm"
    """Shrinks the whole gradient and keeps its direction, or cuts single values, which turns it."""

    gradient_precision: Annotated[Literal["unmodified", "fp32"], Expert] = "unmodified"
    """fp32 adds up the gradients of bf16 weights more exactly, for four more bytes per trained weight."""

    optimizer_release_gradients: Annotated[bool, Expert] = False
    """Steps each weight as soon as its gradient is there; saves the gradients' memory, needs accumulation 1."""

    optimizer_cpu_offload_method: Annotated[Literal["none", "torchao"], Expert] = "none"
    """Keeps the optimizer's state in RAM and updates there; saves VRAM, slower."""

    optimizer_offload_gradients: Annotated[bool, Expert, When(optimizer_cpu_offload_method="torchao")] = False
    """Keeps the gradients in RAM as well; needs accumulation 1."""

    prodigy_steps: Annotated[int | None, Ge(0), Unit("steps"), Expert, When(optimizer="prodigy")] = None
    """Steps in which Prodigy looks for its rate, which then stands still; unset means all of them."""

    @property
    def clip_limit(self) -> float:
        """max_grad_norm, or 0 where the update rule limits itself."""
        return 0.0 if self.optimizer in CLIPS_ITSELF else self.max_grad_norm
