import math

import pytest

from simpletuner.optim.options import Optimizer
from simpletuner.optim.schedules import factor, peak

W, T, LR = 100, 1000, 1e-4
KINDS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "sine")


def rate(n, **changes):
    options = Optimizer(**{"learning_rate": LR, "lr_warmup_steps": W, "lr_end": 0.0} | changes)
    return LR * factor(options, n, T)


@pytest.mark.parametrize("kind", KINDS)
def test_warmup_climbs_for_every_kind_and_does_not_waste_the_first_update(kind):
    assert rate(0, lr_scheduler=kind) == pytest.approx(1e-6)
    assert rate(W - 1, lr_scheduler=kind) == pytest.approx(LR)
    assert rate(W, lr_scheduler=kind) == pytest.approx(LR)


def test_cosine_has_the_values_of_the_contract():
    values = [rate(n, lr_scheduler="cosine") for n in (0, 99, 550, 1000)]
    assert values == pytest.approx([1e-6, 1e-4, 5e-5, 0], abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "middle", "end"),
    [
        ("constant", 1, 1),
        ("constant_with_warmup", 1, 1),
        ("linear", 0.5, 0),
        ("cosine", 0.5, 0),
        ("cosine_with_restarts", 1, 0),  # two cycles: the second begins in the middle
        ("polynomial", 0.5**0.8, 0),
        ("sine", 1, 1),  # two cycles end at the top
    ],
)
def test_middle_and_end_follow_the_closed_form(kind, middle, end):
    e = 0.1
    changes = {"lr_scheduler": kind, "lr_num_cycles": 2, "lr_end": LR * e}
    if kind.startswith("constant"):
        e = 0
    assert rate(550, **changes) == pytest.approx(LR * (e + (1 - e) * middle))
    assert rate(T, **changes) == pytest.approx(LR * (e + (1 - e) * end))


def test_the_rate_stays_at_its_end_after_the_last_step():
    assert rate(T + 500, lr_scheduler="linear", lr_end=1e-5) == pytest.approx(1e-5)


def test_no_warmup_starts_at_the_full_rate():
    assert rate(0, lr_warmup_steps=0, lr_scheduler="cosine") == pytest.approx(LR)


def test_scaling_multiplies_by_the_samples_of_a_step_or_their_root():
    assert peak(Optimizer(learning_rate=LR, lr_scale=True), 16) == pytest.approx(16 * LR)
    assert peak(Optimizer(learning_rate=LR, lr_scale_sqrt=True), 16) == pytest.approx(4 * LR)
    assert peak(Optimizer(learning_rate=LR), 16) == LR
    assert math.isclose(peak(Optimizer(learning_rate=LR, lr_scale=True, lr_scale_sqrt=True), 4), 4 * LR)
