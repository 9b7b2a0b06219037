"""Times, shift, objective and loss against closed forms and the reference schedule."""

from __future__ import annotations

import math

import pytest
import torch

from simpletuner.diffusion import losses
from simpletuner.diffusion.flow import FlowMatching
from simpletuner.diffusion.options import Objective, settle
from simpletuner.diffusion.times import ShiftCurve, Times, shifted

CURVE = ShiftCurve()


def draws(count: int = 20_000, tokens: int = 1024, seed: int = 7, offset: float = 0.0, **options) -> torch.Tensor:
    return Times(Objective(**options), CURVE)(range(count), seed, tokens, offset)


@pytest.mark.parametrize(
    ("tokens", "s", "at"),
    [
        (256, 1.648721, (0.354661, 0.622459, 0.831824)),
        (1024, 1.877611, (0.384945, 0.652489, 0.849235)),
        (2304, 2.331861, (0.437345, 0.699867, 0.874931)),
        (4096, 3.158193, (0.512844, 0.759511, 0.904531)),
        (16384, 25.279657, (0.893917, 0.961948, 0.986986)),
    ],
)
def test_auto_shift_equals_the_table_to_six_digits(tokens, s, at):
    assert CURVE.shift(tokens) == pytest.approx(s, abs=5e-7)
    assert [shifted(t, CURVE.shift(tokens)) for t in (0.25, 0.5, 0.75)] == pytest.approx(at, abs=5e-7)


def test_auto_shift_equals_diffusers():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for tokens in (16, 256, 1024, 4096, 9000):
        assert CURVE.shift(tokens) == pytest.approx(math.exp(calculate_shift(tokens)), rel=1e-12)


@pytest.mark.parametrize(
    ("s", "at"),
    [(3, (0.5, 0.75, 0.9)), (0.1, (0.032258, 0.090909, 0.230769)), (4, (0.571429, 0.8, 0.923077))],
)
def test_static_shift_equals_the_table(s, at):
    assert [shifted(t, s) for t in (0.25, 0.5, 0.75)] == pytest.approx(at, abs=5e-7)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, CURVE.shift(1024)),
        ({"flow_schedule_auto_shift": True}, CURVE.shift(1024)),
        ({"flow_schedule_shift": 3.0}, 3.0),
        ({"flow_schedule_shift": 3.0, "flow_schedule_auto_shift": True}, 3.0),
        ({"flow_schedule_shift": 0.0}, 1.0),
        ({"flow_schedule_auto_shift": False}, 1.0),
    ],
)
def test_the_shift_setting_that_counts(options, expected):
    assert Times(Objective(**options), CURVE).shift(1024) == expected


def test_shift_and_auto_shift_together_give_one_notice():
    objective, problems = settle(
        Objective(flow_schedule_shift=3.0, flow_schedule_auto_shift=True), {"flow_schedule_shift"}
    )
    assert [p.severity for p in problems] == ["notice"]


def test_sigmoid_mode_at_1024_pixels_is_mostly_noise():
    t = draws(100_000, tokens=4096)
    assert float((t > 0.5).float().mean()) == pytest.approx(0.874928, abs=0.004)
    assert float(t.median()) == pytest.approx(0.759511, abs=0.004)


def test_fast_mode_is_full_noise_seven_times_in_ten_and_never_shifted():
    t = draws(100_000, tokens=4096, flux_fast_schedule=True)
    assert float((t == 1).float().mean()) == pytest.approx(0.7, abs=0.005)
    assert set(t.tolist()) == {1.0, 0.75, 0.5, 0.25}
    assert float(t.mean()) == pytest.approx(0.85, abs=0.005)


@pytest.mark.parametrize(
    ("options", "mean", "variance"),
    [
        ({"flow_use_uniform_schedule": True}, 1 / 2, 1 / 12),
        ({"flow_use_beta_schedule": True}, 1 / 2, 1 / 20),
        (
            {"flow_use_beta_schedule": True, "flow_beta_schedule_alpha": 4.0, "flow_beta_schedule_beta": 1.0},
            0.8,
            4 / 150,
        ),
        ({"mixflow_enabled": True}, 1 / 3, 1 / 18),
    ],
)
def test_modes_have_the_moments_of_their_law(options, mean, variance):
    t = draws(flow_schedule_shift=0.0, **options)
    assert float(t.mean()) == pytest.approx(mean, abs=0.01)
    assert float(t.var()) == pytest.approx(variance, abs=0.005)


def test_sigmoid_scale_and_offset_act_on_the_normal_number():
    z = torch.logit(draws(flow_schedule_shift=0.0).double())
    wide = torch.logit(draws(flow_schedule_shift=0.0, flow_sigmoid_scale=2.0, offset=0.5).double())
    torch.testing.assert_close(wide, 2 * (z + 0.5), atol=2e-3, rtol=1e-4)
    assert float(z.mean()) == pytest.approx(0, abs=0.03) and float(z.std()) == pytest.approx(1, abs=0.03)


def test_round_robin_goes_on_where_the_run_was_resumed():
    times = Times(Objective(flow_custom_timesteps=[100, 200, 300, 400, 500], flow_timesteps_mode="round-robin"), CURVE)
    batch, ranks = 2, 2
    micro_steps = [range(m * batch * ranks, (m + 1) * batch * ranks) for m in range(3)]
    entries = [[round(t * 10) - 1 for t in times(numbers, 0, 1024).tolist()] for numbers in micro_steps]
    assert entries == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1]]


def test_a_custom_list_may_hold_sigmas_or_timesteps():
    assert set(draws(500, flow_custom_timesteps=[0.25, 1.0]).tolist()) == {0.25, 1.0}
    assert set(draws(500, flow_custom_timesteps=[250.0, 1000.0]).tolist()) == {0.25, 1.0}


def test_a_time_depends_on_seed_and_number_only():
    times = Times(Objective(), CURVE)
    assert times([5, 9], 1, 1024).tolist() == [times([n], 1, 1024).item() for n in (5, 9)]
    assert times([5], 1, 1024) != times([5], 2, 1024)


def test_draws_stay_inside_the_open_interval():
    t = draws(5000, flow_sigmoid_scale=2000.0)  # most round to an edge
    assert bool(((t > 0) & (t < 1)).all())
    assert bool((t == 1e-5).any()) and bool((t == 1 - 1e-5).any())


def test_two_modes_of_the_users_are_an_error_and_the_flavours_gives_way():
    both = Objective(flux_fast_schedule=True, mixflow_enabled=True)
    objective, problems = settle(both, {"mixflow_enabled"})
    assert not objective.flux_fast_schedule and [p.severity for p in problems] == ["notice"]
    objective, problems = settle(both, {"mixflow_enabled", "flux_fast_schedule"})
    assert [p.severity for p in problems] == ["error"]


def test_the_path_from_image_to_noise_is_straight():
    flow = FlowMatching()
    x_0, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    t = torch.tensor([0.0, 0.3, 1.0])
    x_t, v = flow.add_noise(x_0, noise, t), flow.target(x_0, noise, t)
    assert torch.equal(x_t[0], x_0[0]) and torch.equal(x_t[2], noise[2])
    torch.testing.assert_close(x_t - t.view(-1, 1, 1, 1) * v, x_0)


def test_l2_of_a_batch_is_torchs_mse_sample_by_sample():
    prediction, target = torch.randn(3, 4, 2, 2).bfloat16(), torch.randn(3, 4, 2, 2)
    single = torch.stack([torch.nn.functional.mse_loss(p.float(), q) for p, q in zip(prediction, target, strict=True)])
    torch.testing.assert_close(losses.l2(prediction, target), single)
    assert losses.l2(prediction, target).dtype == torch.float32
