import math

import pytest
import torch
from each_optimizer import each
from toy_run import IMAGES, equal

from simpletuner.errors import DiskError, DivergedError, HardwareError, Stopped
from simpletuner.optim.table import TABLE
from simpletuner.training.gradients import Gradients
from simpletuner.types import Progress

SAVES = {"saving": {"checkpoint_step_interval": 2}}


def test_four_samples_at_once_or_one_by_one_give_equal_weights(run):
    together = run("a", steps=3, batch=4, accumulation=1)
    apart = run("b", steps=3, batch=1, accumulation=4)
    for one in (together, apart):
        one.denoiser.eval()  # dropout draws per forward pass, so it would differ
        one.train()
    assert together.loader.seen == apart.loader.seen
    for name, weight in together.weights.items():
        assert torch.allclose(weight, apart.weights[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", each(n for n in TABLE if n not in ("adafactor", "ao-adamfp8")))
def test_ten_steps_equal_four_and_six_and_differ_from_a_cold_start(run, name):
    rule = {"optimizer": {"optimizer": name, "lr_scheduler": "cosine", "lr_warmup_steps": 3}, "accumulation": 2}
    straight = run("straight", **rule).train()
    first = run("halves", **rule)
    first.trainer.total_steps = 4
    first.train()
    second = run("halves", **rule).train()
    assert second.resumed and equal(straight.everything(), second.everything())
    assert straight.losses() == first.losses() | second.losses()
    assert straight.loader.seen == first.loader.seen + second.loader.seen

    cold = run("halves", resume="checkpoint-4", **rule)
    cold.optimizer.state.clear()  # weights and position only
    cold.train()
    stateless = name in ("torch-sgd", "optimi-sgd")
    assert equal(straight.state_dict(), cold.state_dict()) == stateless


def test_kahan_state_survives_a_resume(run):
    rule = {"optimizer": {"optimizer": "adamw_bf16", "optimizer_config": {"rounding": "kahan"}}}
    straight = run("straight", steps=6, **rule).train()
    run("halves", steps=3, **rule).train()
    again = run("halves", steps=6, **rule).train()
    assert any(key.endswith("compensation") for key in again.everything())
    assert equal(straight.everything(), again.everything())


def test_validation_does_not_disturb_the_weights_and_follows_the_checkpoint(run):
    without = run("a").train()
    validated = run("b", validate_every=4, **SAVES).train()
    assert validated.validation.ran == [4, 8, 10]
    assert equal(without.everything(), validated.everything())


def test_fp16_resumes_with_its_loss_scale(run):
    straight = run("straight", precision="fp16").train()
    first = run("halves", precision="fp16")
    first.trainer.total_steps = 4
    first.train()
    assert equal(straight.everything(), run("halves", precision="fp16").train().everything())


def test_a_changed_rate_applies_on_resume(run):
    run(steps=4).train()
    again = run(steps=5, optimizer={"learning_rate": 0.002}).train()
    assert again.metrics[5]["learning_rate"] == 0.002


def test_the_last_window_of_the_data_is_averaged_over_what_it_has(run):
    one = run(batch=2, accumulation=4, total_epochs=1).train()  # six micro-batches: four and two
    assert one.progress.step == 2 and len(one.loader.seen) == IMAGES
    norms = [one.metrics[step]["grad_norm"] for step in (1, 2)]
    assert norms[1] == pytest.approx(norms[0], rel=0.5)  # a sum over the wrong number would halve it
    assert [e["reason"] for e in one.of_type("checkpoint.saved")] == ["final"]


def test_epoch_intervals_count_whole_epochs_also_across_a_window(run):
    one = run(steps=8, batch=2, accumulation=4, saving={"checkpoint_epoch_interval": 1}).train()
    steps = [int(e["path"].split("-")[1]) for e in one.of_type("checkpoint.saved")]
    assert steps == [2, 3, 5, 6, 8]  # 6 micro-batches an epoch: whole ones end within steps 2, 3, 5, 6 and 8


def test_metrics_and_events_have_the_names_of_the_contract(run):
    one = run(steps=3).train()
    assert set(one.metrics) == {1, 2, 3}
    wanted = "train_loss loss_ema learning_rate epoch grad_norm grad_absmax samples_seen seconds_per_step " + (
        "samples_per_second data_wait_seconds rss_bytes nonfinite_steps loss/train/toys"
    )
    assert set(wanted.split()) <= set(one.metrics[3])
    done = [e for e in one.told if e.type == "step.done"]
    assert [e.step for e in done] == [1, 2, 3] and done[-1].data["eta_seconds"] == 0
    assert {"epoch", "loss", "lr", "grad_norm", "seconds", "eta_seconds"} <= set(done[0].data)


# ---- numbers that are not finite


def poisoned(run, action, *samples, **changes):
    one = run(training={"nonfinite_action": action}, **changes)
    one.loader.poison = set(samples)
    return one


def test_stop_ends_with_exit_code_6_and_no_weight_changes(run):
    one = poisoned(run, "stop", 5, **SAVES)  # two samples a step: the third step
    with pytest.raises(DivergedError) as caught:
        one.train()
    assert caught.value.exit_code == 6
    assert equal(one.everything(), run(resume="checkpoint-2").everything())
    (event,) = one.of_type("nonfinite.found")
    assert len(event["sample_ids"]) == 2 and event["step"] == 3 and len(event["times"]) == 2
    assert [p.name for p in one.checkpoints.steps().values()] == ["checkpoint-2"]


def test_skip_drops_one_update_and_counts_it(run):
    one = poisoned(run, "skip", 5).train()
    assert one.progress.step == 10
    assert one.metrics[10]["nonfinite_steps"] == 1 and "train_loss" not in one.metrics[3]
    assert all(t.isfinite().all() for t in one.everything().values())


def test_skip_gives_up_after_three_in_a_row(run):
    with pytest.raises(DivergedError, match="3 updates in a row"):
        poisoned(run, "skip", 4, 6, 8).train()


def test_rollback_returns_to_the_checkpoint_at_half_the_rate_once(run):
    one = poisoned(run, "rollback", 4, 6, 8, **SAVES)
    one.loader.close = lambda: one.loader.poison.clear()  # what made them is gone
    one.train()
    assert one.of_type("warning")[0]["code"] == "rolled_back"
    assert one.progress.step == 10 and one.metrics[10]["learning_rate"] == 0.005
    assert run().trainer.rate_factor == 0.5  # part of the run's state

    again = poisoned(run, "rollback", 4, 6, 8, folder="again", **SAVES)
    with pytest.raises(DivergedError, match="going back once") as caught:
        again.train()
    assert caught.value.exit_code == 6 and again.progress.step == 5


def test_rollback_without_a_checkpoint_says_so(run):
    with pytest.raises(DivergedError, match="no checkpoint to go back to"):
        poisoned(run, "rollback", 0, 2, 4).train()


def test_a_bad_gradient_behind_a_good_loss_is_caught_too(run):
    one = run(training={"nonfinite_action": "skip"}, steps=4)
    one.denoiser.outer.weight.register_hook(lambda g: torch.full_like(g, math.inf) if one.progress.samples == 4 else g)
    one.train()
    assert one.metrics[4]["nonfinite_steps"] == 1
    assert all(t.isfinite().all() for t in one.everything().values())


def test_an_fp16_overflow_is_ordinary_until_it_never_ends(run):
    one = run(precision="fp16", steps=200)
    one.denoiser.outer.weight.register_hook(lambda g: torch.full_like(g, math.inf))
    with pytest.raises(DivergedError, match="100 steps in a row"):
        one.train()
    assert one.progress.step == 100 and not one.of_type("nonfinite.found")


def test_weights_that_are_not_finite_are_never_saved(run):
    one = run(steps=4, **SAVES)
    with torch.no_grad():
        one.denoiser.outer.weight[0, 0] = math.nan
    one.trainer.nonfinite.bad = lambda what: False  # as if the guard had a hole
    with pytest.raises(DivergedError, match="nothing was saved"):
        one.train()
    assert not one.checkpoints.steps()


# ---- memory


def short_of_memory(one, times, at=1):
    """The denoiser runs out of memory in step `at`, that many times."""
    left, forward, seen = [times], one.denoiser.forward, []

    def failing(x, t):
        if one.progress.step == at - 1 and left[0]:
            left[0] -= 1
            seen.append((x.clone(), t.clone()))
            raise torch.OutOfMemoryError("simulated")
        seen.append((x.clone(), t.clone()))
        return forward(x, t)

    one.denoiser.forward = failing
    return seen


def test_out_of_memory_is_tried_again_once_with_the_same_draws(run):
    one = run("a")
    seen = short_of_memory(one, 1)
    one.train()
    assert torch.equal(seen[0][0], seen[1][0]) and torch.equal(seen[0][1], seen[1][1])
    assert len(one.of_type("memory.retry")) == 1
    assert equal(one.everything(), run("b").train().everything())


def test_twice_out_of_memory_ends_with_exit_code_5_and_lines_to_change(run):
    relief = ("gradient_checkpointing: true", "lora_rank: 8")
    one = run(relief=relief)
    short_of_memory(one, 2)
    with pytest.raises(HardwareError) as caught:
        one.train()
    details = caught.value.problems[0].details
    assert caught.value.exit_code == 5 and details[-2:] == relief
    assert not one.checkpoints.steps()


def test_out_of_memory_later_saves_the_last_whole_step(run):
    one = run()
    short_of_memory(one, 2, at=4)
    with pytest.raises(HardwareError, match="checkpoint-3 is saved"):
        one.train()
    again = run().train()
    assert equal(again.everything(), run("b").train().everything())


# ---- stopping


@pytest.mark.parametrize(("code", "reason"), [(130, "signal"), (0, "control")])
def test_a_stop_request_saves_after_the_step_and_resumes_exactly(run, code, reason):
    one = run(validate_every=1)
    one.loader.pause, pull = 0.0, one.loader.next

    def ask():
        if one.progress.step == 2:
            one.stop.ask("a test", code)
        return pull()

    one.loader.next = ask
    with pytest.raises(Stopped) as caught:
        one.train()
    assert caught.value.exit_code == code and one.progress.step == 3
    assert [e["reason"] for e in one.of_type("checkpoint.saved")] == [reason]
    (event,) = one.of_type("run.stopped")
    assert event["checkpoint"] == "checkpoint-3" and event["exit_code"] == code
    assert equal(run().train().everything(), run("b").train().everything())


def test_a_finished_run_that_is_started_again_does_nothing(run):
    run().train()
    again = run()
    again.train()
    assert not again.metrics and not again.of_type("checkpoint.saved")
    assert again.progress.step == 10


def test_no_space_for_the_final_save_waits_until_it_is_stopped(run):
    one = run(steps=2)
    one.checkpoints.free_bytes = lambda path: 0
    one.checkpoints.contents.__dict__["estimated_bytes"] = 1000
    waits = []
    one.checkpoints.sleep, one.checkpoints.wait_ended = waits.append, lambda: len(waits) == 3
    with pytest.raises(DiskError) as caught:
        one.train()
    assert caught.value.exit_code == 7 and waits == [30.0] * 3


# ---- parts


def test_precise_gradients_add_up_in_fp32():
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    rough = torch.nn.Parameter(p.detach().clone())
    gradients = Gradients([p], precise=True)
    for number in [1.0] + [0.003] * 100:  # each addend is below half a step of bf16 at 1
        (p * number).sum().backward()
        (rough * number).sum().backward()
    assert gradients.tensors()[0].item() == pytest.approx(1.3, abs=2e-3)
    gradients.release()
    assert p.grad.item() == pytest.approx(1.3, abs=0.005) and rough.grad.item() == 1.0


def test_clipping_by_norm_keeps_the_direction_and_by_value_does_not():
    def clipped(method, limit):
        p = torch.nn.Parameter(torch.zeros(2))
        p.grad = torch.tensor([3.0, 4.0])
        gradients = Gradients([p])
        norm, largest = gradients.measure()
        gradients.clip(norm, limit, method)
        assert (norm.item(), largest.item()) == (5.0, 4.0)
        return p.grad.tolist()

    assert clipped("norm", 1.0) == pytest.approx([0.6, 0.8], rel=1e-5)
    assert clipped("norm", 10.0) == [3.0, 4.0]
    assert clipped("value", 3.5) == [3.0, 3.5]
    assert clipped("norm", 0) == [3.0, 4.0]


def test_progress_is_changed_in_place_because_the_loader_holds_it(run):
    one = run()
    held = one.progress
    one.trainer.load_state(one.trainer.state() | {"step": 5, "samples": 10})
    assert held is one.loader.progress and held == Progress(5, 1, 0, 10) and one.loader.closed == 1
