"""What bitsandbytes does on a GPU only: state in memory that the host and the device share."""

import pytest
import torch
from card import CARD
from torch.nn import Parameter

from simpletuner.optim.build import build
from simpletuner.optim.options import Optimizer
from simpletuner.rules.packages import installed
from simpletuner.training.state import load_optimizer, save_optimizer

pytestmark = [
    *CARD,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(not installed("bitsandbytes"), reason="needs bitsandbytes"),
]
SHAPES = {"large": (16, 12288), "small": (16, 3072), "tiny": (7,)}  # bitsandbytes pages from 1e5 numbers on


def made(name, weights):
    return build(Optimizer(optimizer=name, learning_rate=1e-3), weights, seed=0)


def drawn():
    generator = torch.Generator().manual_seed(0)
    return {name: Parameter(torch.randn(shape, generator=generator).cuda()) for name, shape in SHAPES.items()}


def steps(weights, optimizer, count):
    for _ in range(count):
        for p in weights.values():
            p.grad = p.detach().sin()
        optimizer.step()


@pytest.mark.parametrize(
    "name", ["bnb-lion8bit-paged", "bnb-adamw8bit-paged", "bnb-ademamix8bit-paged", "bnb-lion-paged"]
)
def test_paged_state_stays_paged_over_a_resume_and_the_steps_are_equal(name, tmp_path):
    straight = drawn()
    optimizer = made(name, straight)
    steps(straight, optimizer, 2)
    assert optimizer.state[straight["large"]]["state1"].is_paged
    save_optimizer(optimizer, list(straight), tmp_path)
    resumed = {k: Parameter(p.detach().clone()) for k, p in straight.items()}
    steps(straight, optimizer, 3)
    again = made(name, resumed)
    assert load_optimizer(again, list(resumed), tmp_path)
    assert again.state[resumed["large"]]["state1"].is_paged
    steps(resumed, again, 3)
    torch.cuda.synchronize()
    assert all(torch.equal(p, resumed[k]) for k, p in straight.items())


def test_a_step_without_pages_does_not_make_the_host_wait():
    weights = drawn()
    optimizer = made("bnb-lion8bit", weights)
    steps(weights, optimizer, 2)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(weights, optimizer, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert all(p.isfinite().all() for p in weights.values())
