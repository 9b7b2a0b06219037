import pytest
from rules.cases import OUR_OWN, Case, speaks_only_when_broken

from simpletuner.rules import optimizer

EARLY, ACCUMULATION, CLIP = optimizer.EARLY, optimizer.ACCUMULATION, optimizer.CLIP
ITSELF = {"optimizer": "optimi-stableadamw"}
RATE = ("lr_end", "learning_rate", "lr_scheduler")
FREE = {"optimizer": "adamw_schedulefree", "lr_scheduler": "cosine"}
CASES = [
    Case(39, optimizer.rate_falls, {"lr_scheduler": "cosine", "lr_end": 1e-4}, "not below", RATE, {"lr_end": 1e-5}),
    Case(39, optimizer.rate_falls, {"lr_scheduler": "linear", "learning_rate": 1e-7}, "would not fall", RATE,
         {"lr_scheduler": "constant"}),
    Case(42, optimizer.schedule_free_has_no_schedule, FREE, "lr_scheduler is cosine", ("optimizer", "lr_scheduler"),
         {"lr_scheduler": "constant_with_warmup"}),
    Case(OUR_OWN, optimizer.clips_once, ITSELF, "not clipped", ("optimizer", "max_grad_norm"), {"max_grad_norm": 0},
         "notice"),
    Case(42, optimizer.released_gradients_are_whole, {EARLY: True, ACCUMULATION: 2, CLIP: "value"},
         "gradient_accumulation_steps is 2", (EARLY, ACCUMULATION), {ACCUMULATION: 1}),
    Case(42, optimizer.released_gradients_are_whole, {EARLY: True}, "norm limits", (EARLY, CLIP), {"max_grad_norm": 0}),
    Case(42, optimizer.released_gradients_are_whole, {EARLY: True}, "norm limits", (EARLY, CLIP), {EARLY: False}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_optimizer(case, config):
    speaks_only_when_broken(case, config)
