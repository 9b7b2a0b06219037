"""What bitsandbytes does on a GPU only: state in memory that the host and the device share."""

import inspect

import pytest
import torch
from card import CARD
from torch.nn import Parameter

from simpletuner.optim.build import build
from simpletuner.optim.options import Optimizer
from simpletuner.optim.table import TABLE
from simpletuner.rules.packages import installed
from simpletuner.training.state import load_optimizer, save_optimizer

pytestmark = [
    *CARD,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(not installed("bitsandbytes"), reason="needs bitsandbytes"),
]
SHAPES = {"large": (16, 12288), "small": (16, 3072), "tiny": (7,)}  # bitsandbytes pages from 1e5 numbers on
MANY = {str(number): (16, 3072) if number % 2 else (3072, 16) for number in range(200)}  # as a LoRA has them


def made(name, weights):
    return build(Optimizer(optimizer=name, learning_rate=1e-3), weights, seed=0)


def one_by_one(name, weights):
    from simpletuner.optim.bnb import Queued

    library = TABLE[name].load().__bases__[1]
    values = {k: v for k, v in TABLE[name].defaults.items() if k in inspect.signature(library).parameters}
    return type("Apart", (Queued, library), {})(list(weights.values()), lr=1e-3, **values)


def drawn(shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return {name: Parameter(torch.randn(shape, generator=generator).cuda()) for name, shape in shapes.items()}


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


def kernels(weights, optimizer):
    """How many a step launches."""
    steps(weights, optimizer, 1)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        optimizer.step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def test_a_step_of_many_small_tensors_is_a_few_launches():
    together, apart = drawn(MANY), drawn(MANY)
    few, many = kernels(together, made("bnb-lion8bit", together)), kernels(apart, one_by_one("bnb-lion8bit", apart))
    assert many >= len(MANY) and 0 < few <= len(MANY) // 10


@pytest.mark.parametrize("name", [n for n in TABLE if n.startswith("bnb-") and "ademamix" not in n])
def test_tensors_that_share_launches_are_updated_as_one_by_one(name):
    together, apart = drawn(SHAPES | MANY), drawn(SHAPES | MANY)
    one, other = made(name, together), one_by_one(name, apart)
    for step in range(4):
        for weights, optimizer in ((together, one), (apart, other)):
            for number, p in enumerate(weights.values()):
                p.grad = None if step == 2 and number % 7 == 0 else p.detach().sin()
            optimizer.step()
    torch.cuda.synchronize()
    assert all(torch.equal(p, apart[k]) for k, p in together.items())


@pytest.mark.parametrize("name", ["bnb-lion8bit-paged", "bnb-adamw8bit-paged", "bnb-adamw-paged"])
def test_small_tensors_are_paged_together_and_go_on_after_a_resume(name, tmp_path):
    straight = drawn(MANY)
    optimizer = made(name, straight)
    steps(straight, optimizer, 2)
    assert all(optimizer.state[p]["state1"].is_paged for p in straight.values())
    save_optimizer(optimizer, list(straight), tmp_path)
    resumed = {k: Parameter(p.detach().clone()) for k, p in straight.items()}
    steps(straight, optimizer, 3)
    again = made(name, resumed)
    assert load_optimizer(again, list(resumed), tmp_path)
    assert all(again.state[p]["state1"].is_paged for p in resumed.values())
    steps(resumed, again, 3)
    torch.cuda.synchronize()
    assert all(torch.equal(p, resumed[k]) for k, p in straight.items())


def test_parameters_that_move_before_the_first_step_are_updated_where_they_are():
    moved, there = {k: Parameter(p.detach().cpu()) for k, p in drawn().items()}, drawn()
    optimizer = made("bnb-lion8bit", moved)
    for p in moved.values():
        p.data = p.data.cuda()
    steps(moved, optimizer, 2)
    steps(there, made("bnb-lion8bit", there), 2)
    torch.cuda.synchronize()
    assert all(torch.equal(p, there[k]) for k, p in moved.items())
