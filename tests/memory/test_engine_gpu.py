"""The engine on a GPU: equal numbers while transfers run beside, in a CUDA graph too; the host waits for nothing."""

import gc

import pytest
import torch
from card import CARD
from memory.blocks import Block, equal, forward, inputs, model, plain, same, step, trained
from torch.profiler import ProfilerActivity, profile

from simpletuner.memory.activations import Kept, Parked
from simpletuner.memory.runner import Runner
from simpletuner.memory.stream import Streamed

pytestmark = [
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    *CARD,
]
ALL, WIDE = range(7), 1024


@pytest.fixture
def device():
    return torch.device("cuda")


def built(device, store, **more):
    blocks = model(device=device)
    chosen = more.pop("chosen", ALL)
    residency = Streamed([block for block in blocks if block.index in chosen], device, **more)
    return blocks, residency, Runner(1, residency=residency, store=store(device) if store is Parked else store())


@pytest.mark.parametrize("store", [Kept, Parked])
@pytest.mark.parametrize("more", [
    {"depth": 1}, {"depth": 2}, {"depth": 4}, {"ahead": False}, {"chosen": [0, 2, 5]}, {"most_pinned": 0},
], ids=str)  # fmt: skip
def test_output_and_gradients_are_those_of_resident_blocks(device, store, more):
    expected = step(model(device=device), Runner(1), *inputs(device))
    blocks, residency, runner = built(device, store, **more)
    for _ in range(3):
        assert equal(step(blocks, runner, *inputs(device)), expected)
    assert residency.capturable == ("most_pinned" not in more)
    residency.close()


def test_on_disk_too(device, tmp_path):
    expected = step(model(device=device), Runner(1), *inputs(device))
    blocks, residency, runner = built(device, Kept, folder=tmp_path)
    for _ in range(3):
        assert equal(step(blocks, runner, *inputs(device)), expected)
    residency.close()


def test_streamed_equals_plain_up_to_rounding(device):
    blocks, _, runner = built(device, Kept)
    (found, gradients), (wanted, exact) = (
        step(blocks, runner, *inputs(device)),
        step(model(device=device), plain, *inputs(device)),
    )
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(gradients, exact, strict=True))


@pytest.mark.parametrize("store", [Kept, Parked])
@pytest.mark.parametrize("chosen", [[3], ALL], ids=["one", "all"])
def test_a_cuda_graph_holds_the_whole_step(device, store, chosen):
    blocks, residency, runner = built(device, store, chosen=chosen)
    tensors = inputs(device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step(blocks, runner, *tensors)
    torch.cuda.current_stream().wait_stream(side)
    for leaf in trained(blocks):
        leaf.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = forward(blocks, runner, *tensors)
        output.square().mean().backward()
    output = output.detach()
    for seed in (5, 6):
        for old, new in zip(tensors, inputs(device, seed=seed), strict=True):
            old.copy_(new)
        with torch.no_grad():  # samples between the steps use the same slots
            forward(blocks, runner, *inputs(device, seed=9))
        for leaf in trained(blocks):
            leaf.grad.zero_()
        graph.replay()
        found = output.clone(), [leaf.grad.clone() for leaf in trained(blocks)]
        expected = step(model(device=device), Runner(1), *inputs(device, seed=seed))
        assert equal(found, expected)
    graph.reset()


def large(device, count=6):
    """Blocks of 8 MB, so that copies and products take a while."""
    generator = torch.Generator(device).manual_seed(1)

    def function(weights, factors, x):
        return (x + torch.tanh(x @ weights["w"] + x @ factors["b"]) / 8,)

    def block(index):
        w = torch.randn(WIDE, 2 * WIDE, device=device, generator=generator)[:, :WIDE].contiguous() / 32
        b = torch.zeros(WIDE, WIDE, device=device).requires_grad_()
        return Block(index, "large", function, {"w": w}, {"b": b})

    return [block(index) for index in range(count)]


def pass_through(blocks, runner, x):
    for block in blocks:
        (x,) = runner(block, (x,), ())
    x.square().mean().backward()


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")
@pytest.mark.parametrize("store", [Kept, Parked])
def test_a_step_copies_nothing_back_and_the_host_waits_for_nothing(device, store):
    blocks = large(device)
    residency = Streamed(blocks, device, depth=2)
    runner = Runner(1, residency=residency, store=store(device) if store is Parked else store())
    x = torch.randn(512, WIDE, device=device)
    for _ in range(2):
        pass_through(blocks, runner, x)
    torch.cuda.synchronize()
    residency.copies.clear()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            pass_through(blocks, runner, x)
            torch.cuda.set_sync_debug_mode("default")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    names = [event.name for event in seen.events()]
    back = [name for name in names if "Memcpy DtoH" in name]
    assert len(back) == (6 if store is Parked else 0)  # the parked inputs; no weight ever
    assert sum("Memcpy HtoD" in name for name in names) >= 6 + 4
    assert not any("Pageable" in name for name in names if "Memcpy" in name)
    assert residency.copies == {0: 2, 1: 2, 2: 2, 3: 2, 4: 1, 5: 1}
    residency.close()


def test_the_device_holds_the_slots_and_no_more(device):
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    blocks = large(device)
    each = WIDE * WIDE * 4
    assert torch.cuda.memory_allocated() - before >= 12 * each  # weights and factors
    residency = Streamed(blocks, device, depth=2)
    assert torch.cuda.memory_allocated() - before <= (6 + 2) * each + 4096  # factors and slots
    assert residency.arena.pinned and residency.arena.num_bytes == 6 * each
    residency.close()


def test_gradients_accumulate(device):
    def grads(blocks, runner):
        for seed in range(3):
            forward(blocks, runner, *inputs(device, seed=seed)).square().mean().backward()
        return [leaf.grad for leaf in trained(blocks)]

    blocks, _, runner = built(device, Parked)
    assert same(grads(blocks, runner), grads(model(device=device), Runner(1)))
