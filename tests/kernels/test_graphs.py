"""Recorded gradients: where they arrive and what is left of attempts that failed; on CUDA, with true recordings."""

from __future__ import annotations

import pytest
import torch
from card import CARD, needs_card
from replayed import Replayed
from torch import nn

from simpletuner.kernels.graphs import Graphs


@pytest.fixture(autouse=True)
def no_device_to_wait_for(monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)


class Steps:
    """Micro-batches of two sizes through a small layer, recorded or not."""

    def __init__(self, kind=Replayed, device="cpu"):
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 3).to(device)
        self.graphs = kind(self.loss, list(self.layer.parameters()))
        self.device = device

    def loss(self, inputs):
        return self.layer(inputs["x"]).square().mean()

    def inputs(self, size):
        return {"x": torch.arange(size * 6.0).view(size, 6).sin().to(self.device)}

    def plain(self, size, divisor=2.0):
        (self.loss(self.inputs(size)) / divisor).backward()

    def recorded(self, size, divisor=2.0):
        return self.graphs.run(self.inputs(size), divisor)

    def taken(self):
        """The gradients, which the next update then begins without."""
        found = [p.grad.clone() for p in self.layer.parameters()]
        for p in self.layer.parameters():
            p.grad = None
        return found

    def expected(self, *sizes):
        for size in sizes:
            self.plain(size)
        return self.taken()


def close(found, expected):
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(found, expected, strict=True))


KINDS = [
    pytest.param((Replayed, "cpu"), id="cpu"),
    pytest.param((Graphs, "cuda"), id="cuda", marks=CARD),
]


@pytest.fixture(params=KINDS)
def steps(request):
    made = Steps(*request.param)
    made.expected(2, 4)  # kernels are loaded before anything is recorded
    return made


@pytest.mark.parametrize("order", [
    ("recorded", "recorded"), ("plain", "recorded"), ("recorded", "plain"), ("plain", "plain", "recorded", "plain"),
], ids="-".join)  # fmt: skip
def test_micro_batches_add_up_however_each_is_computed(steps, order):
    """Also where the first recording comes in the middle of an update, and where a later update mixes them."""
    sizes = (2, 4, 2, 4)[: len(order)]
    expected = steps.expected(*sizes)
    for _ in range(3):
        for how, size in zip(order, sizes, strict=True):
            getattr(steps, how)(size)
        assert close(steps.taken(), expected)


def test_nothing_is_left_of_an_update_that_was_broken_off(steps):
    expected = steps.expected(2, 2)
    steps.recorded(2), steps.recorded(2)
    assert close(steps.taken(), expected)
    steps.recorded(2)  # and then memory runs out: the gradients are cleared, as the trainer does
    steps.taken()
    steps.recorded(2), steps.recorded(2)
    assert close(steps.taken(), expected)


def test_recordings_that_were_released_are_made_again(steps):
    expected = steps.expected(2)
    steps.recorded(2)
    steps.taken()
    steps.graphs.release()
    assert not steps.graphs.recordings
    steps.recorded(2)
    assert close(steps.taken(), expected) and len(steps.graphs.recordings) == 1


def test_an_attempt_without_room_leaves_nothing_behind_and_is_not_repeated():
    steps = Steps()
    steps.graphs.no_room = True
    assert steps.recorded(2) is None and steps.graphs.failure == "OutOfMemoryError: simulated"
    assert steps.graphs.attempt() is None and not steps.graphs._buffers
    steps.graphs.no_room = False
    assert steps.recorded(2) is None and not steps.graphs.recordings
    assert steps.recorded(4) is not None, "another shape has its own attempt"


def test_a_shape_without_room_leaves_the_others_and_the_sums(steps, monkeypatch):
    expected = steps.expected(2, 4)
    steps.recorded(2)
    monkeypatch.setattr("simpletuner.kernels.graphs.MOST", 1)
    assert steps.recorded(4) is None
    steps.plain(4)  # as the caller does then
    assert close(steps.taken(), expected)
    steps.recorded(2), steps.plain(4)
    assert close(steps.taken(), expected)


@needs_card
def test_memory_that_runs_out_while_recording_ends_the_attempt_alone():
    steps = Steps(Graphs, "cuda")
    expected = steps.expected(2)
    loss = steps.graphs.loss

    def large(inputs):
        return loss(inputs) + torch.empty(1 << 50, dtype=torch.uint8, device="cuda").sum()

    steps.graphs.loss = large
    assert steps.recorded(2) is None and "memory" in steps.graphs.failure.lower()
    steps.plain(2)
    assert close(steps.taken(), expected)
