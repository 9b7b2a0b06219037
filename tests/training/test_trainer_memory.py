"""Memory that runs out while steps become fast: the second try has the same draws, and nothing of the first."""

from __future__ import annotations

import functools
from contextlib import nullcontext

import pytest
import torch
from card import needs_card
from replayed import Replayed
from toy_run import equal

from simpletuner.errors import HardwareError
from simpletuner.training.pace import Pace

STEPS = {"steps": 5, "accumulation": 2}  # two micro-batches each, of one shape


class Watched(Pace):
    """Notes how each micro-batch was computed, and runs out of memory behind chosen ones, once each."""

    def __init__(self, *arguments, kind=Replayed, failing=(), **named):
        super().__init__(*arguments, **named)
        if kind is not None:
            self.graphs = kind(arguments[1], named["parameters"])
        self.failing, self.tried, self.inputs = set(failing), [], []

    def __call__(self, inputs, divisor):
        plain, replays = self.plain_calls > 0, len(self.graphs.recordings) if self.graphs else 0
        number = len(self.tried)
        self.tried.append("plain" if plain else "replayed" if replays else "fast")
        self.inputs.append({name: tensor.clone() for name, tensor in inputs.items()})
        loss = super().__call__(inputs, divisor)
        if number in self.failing:  # its gradient is there already: half of what the update needs
            raise torch.OutOfMemoryError("simulated")
        return loss


def paced(run, folder, kind=Replayed, failing=(), **changes):
    """A toy run at a pace, which its trainer has as `backward`."""
    made = {}

    def pace(backward, loss):
        made["pace"] = Watched(
            backward, loss, kind=kind, failing=failing, parameters=list(parameters()),
            compiled=[], record=False, plain_calls=1, sparing=nullcontext, tell=lambda *told: None,
        )  # fmt: skip
        return made["pace"]

    one = run(folder, pace=lambda *a: Deferred(functools.partial(pace, *a)), **STEPS | changes)
    parameters = one.weights.values
    one.trainer.backward.make()
    return one


class Deferred:
    """The pace of a trainer that is made before its weights are at hand."""

    def __init__(self, make):
        self._make = make

    def make(self):
        self.pace = self._make()

    def __call__(self, inputs, divisor):
        return self.pace(inputs, divisor)

    def rest(self):
        self.pace.rest()


@pytest.fixture(autouse=True)
def no_device_to_wait_for(monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)


@pytest.fixture
def straight(run):
    return paced(run, "straight").train()


# Micro-batches in order of the tries: 0 is plain, 1 fast, from 2 on they are replayed.
@pytest.mark.parametrize("failing", [0, 1, 4, 5], ids=["plain", "fast", "first replayed", "second replayed"])
def test_the_second_try_of_a_step_has_the_same_draws_and_no_gradient_of_the_first(run, straight, failing):
    one = paced(run, "short", failing=[failing]).train()
    pace, before = one.trainer.backward.pace, straight.trainer.backward.pace
    assert len(one.of_type("memory.retry")) == 1 and len(pace.tried) == len(before.tried) + failing % 2 + 1
    first = failing - failing % 2  # of the step, at its first try; then it is done again from there
    again = first + failing % 2 + 1
    for offset in range(failing % 2 + 1):
        for name, tensor in pace.inputs[first + offset].items():
            assert torch.equal(tensor, pace.inputs[again + offset][name])
    assert equal(one.everything(), straight.everything()) and one.losses() == straight.losses()


def test_a_plain_try_is_tried_again_plain(run, straight):
    one = paced(run, "short")
    forward, left = one.denoiser.forward, [1]

    def short(*arguments):
        if left:
            left.pop()
            raise torch.OutOfMemoryError("simulated")
        return forward(*arguments)

    one.denoiser.forward = short
    one.train()
    assert one.trainer.backward.pace.tried[:3] == ["plain", "plain", "fast"]
    assert equal(one.everything(), straight.everything())


def test_recordings_are_given_back_before_the_second_try(run):
    one = paced(run, "short", failing=[5])
    pace, left = one.trainer.backward.pace, []
    one.events.subscribe(
        lambda e: (
            left.append((dict(pace.graphs.recordings), [p.grad for p in one.weights.values()]))
            if e.type == "memory.retry"
            else None
        )
    )
    one.train()
    assert left == [({}, [None] * len(one.weights))]
    assert pace.tried[4:8] == ["replayed", "replayed", "fast", "replayed"]  # recorded anew, with the first of the two


def test_no_room_for_a_recording_costs_speed_alone(run, straight):
    one = paced(run, "short", kind=functools.partial(without_room))
    one.train()
    assert equal(one.everything(), straight.everything()) and not one.of_type("memory.retry")
    assert one.trainer.backward.pace.graphs.failure and "replayed" not in one.trainer.backward.pace.tried


def without_room(loss, parameters):
    graphs = Replayed(loss, parameters)
    graphs.no_room = True
    return graphs


def test_a_second_failure_saves_the_last_whole_step(run, straight):
    one = paced(run, "short", failing=[5, 6])
    with pytest.raises(HardwareError, match="checkpoint-2 is saved"):
        one.train()
    assert not one.trainer.backward.pace.graphs.recordings
    again = paced(run, "short")
    assert again.resumed
    again.train()
    assert equal(again.everything(), straight.everything())


@needs_card
@pytest.mark.parametrize("failing", [0, 1, 4, 5], ids=["plain", "fast", "first replayed", "second replayed"])
def test_on_a_device_with_true_recordings(run, failing):
    from simpletuner.kernels.graphs import Graphs

    def on_gpu(folder, failing=()):
        one = paced(run, folder, Graphs, failing, device="cuda", optimizer={"optimizer": "adamw_bf16"})
        one.denoiser.eval()  # dropout in a graph draws by the device's own count
        return one.train()

    straight, one = on_gpu("straight"), on_gpu("short", [failing])
    pace = one.trainer.backward.pace
    assert not pace.graphs.failure and "replayed" in pace.tried and len(one.of_type("memory.retry")) == 1
    for name, weight in straight.weights.items():
        assert torch.equal(weight, one.weights[name])
    assert one.losses() == straight.losses()
