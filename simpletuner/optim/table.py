"""The optimizers by name, as strings: nothing is imported until one is chosen."""

from __future__ import annotations

from simpletuner.registry import Entry

TABLE: dict[str, Entry] = {
    "adamw_bf16": Entry(
        "simpletuner.optim.adamw_bf16:AdamWBF16",
        "AdamW for bf16 weights with stochastic rounding: little memory and steady",
        defaults={"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 1e-2},
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
}
TABLE["adafactor"] = TABLE["torch-adafactor"]

# Numbers that an optimizer keeps for each weight, in the weight's precision; 2 unless listed. Adafactor keeps rows.
STATE = {"torch-sgd": 0.0, "torch-adafactor": 0.0, "adafactor": 0.0, "torch-rmsprop": 1.0, "torch-adagrad": 1.0}


def numbers_kept(name: str) -> float:
    """How many numbers of state an optimizer has for each weight."""
    return STATE.get(name, 2.0)
