"""On a GPU the numbers of a step are read one step later, and a bad update is dropped on the device."""

import pytest
import torch
from card import CARD
from toy_run import equal

from simpletuner.errors import DivergedError

pytestmark = CARD
RULES = ["adamw_bf16", "torch-adamw", "torch-sgd", "torch-adafactor"]  # the last one cannot drop an update by itself
SAVES = {"saving": {"checkpoint_step_interval": 2}}


def on_gpu(run, folder, rule="adamw_bf16", **changes):
    return run(folder, device="cuda", precision="bf16", optimizer={"optimizer": rule}, **changes)


@pytest.mark.parametrize("rule", RULES)
def test_reading_later_changes_no_weight_and_no_number(run, rule):
    later, at_once = on_gpu(run, "a", rule), on_gpu(run, "b", rule)
    assert later.trainer.lagging == (rule != "torch-adafactor")
    at_once.trainer.lagging = False
    later.train(), at_once.train()
    assert equal(later.everything(), at_once.everything())
    assert later.losses() == at_once.losses() and set(later.losses()) == set(range(1, 11))
    assert [e.step for e in later.told if e.type == "step.done"] == list(range(1, 11))


@pytest.mark.parametrize("rule", RULES)
def test_a_bad_update_is_dropped_on_the_device(run, rule):
    one = on_gpu(run, "a", rule, training={"nonfinite_action": "skip"})
    one.loader.poison = {5, 19}  # steps 3 and, the last one, 10
    before = []
    inner = one.trainer._between_steps
    one.trainer._between_steps = lambda epochs: (before.append(one.everything()), inner(epochs))
    one.train()
    assert equal(before[1], before[2]) or rule == "adamw_bf16"
    weights = [{n: s[n] for n in one.weights} for s in before]
    assert equal(weights[1], weights[2]) and not equal(weights[2], weights[3])
    assert equal(weights[8], {n: one.everything()[n] for n in one.weights})
    assert one.metrics[10]["nonfinite_steps"] == 2


@pytest.mark.parametrize("rule", RULES)
def test_ten_steps_equal_four_and_six_on_the_device(run, rule):
    straight = on_gpu(run, "straight", rule).train()
    first = on_gpu(run, "halves", rule)
    first.trainer.total_steps = 4
    first.train()
    second = on_gpu(run, "halves", rule).train()
    assert second.resumed and equal(straight.everything(), second.everything())
    assert straight.losses() == first.losses() | second.losses()


def test_rollback_and_stop_act_one_step_later_and_save_nothing_bad(run):
    one = on_gpu(run, "a", training={"nonfinite_action": "rollback"}, **SAVES)
    one.loader.poison = {4, 6, 8}
    with pytest.raises(DivergedError, match="going back once"):
        one.train()
    assert [p.name for p in one.checkpoints.steps().values()] == ["checkpoint-2"]

    two = on_gpu(run, "b", training={"nonfinite_action": "stop"}, **SAVES)
    two.loader.poison = {5}
    with pytest.raises(DivergedError):
        two.train()
    assert all(tensor.isfinite().all() for tensor in two.state_dict().values())


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_the_host_never_waits_inside_a_step(run):
    one = on_gpu(run, "a", steps=6)
    step = one.trainer._step

    def watched(window):
        torch.cuda.set_sync_debug_mode("error" if window.before.step >= 2 else "default")
        step(window)
        torch.cuda.set_sync_debug_mode("default")

    one.trainer._step = watched
    one.train()
    assert one.progress.step == 6
