import pytest
import torch
from torch.nn import Parameter

from simpletuner.optim import adamw_bf16
from simpletuner.optim.adamw_bf16 import AdamWBF16, round_stochastically


def quadratic(optimizer_class, dtype, **options):
    """Loss after 1000 steps towards drawn numbers, so small that nearest rounding would lose most of them."""
    goal = torch.randn(2000, generator=torch.Generator().manual_seed(1))
    w = Parameter(torch.zeros(2000, dtype=dtype))
    optimizer = optimizer_class([w], lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01, **options)
    for _ in range(1000):
        w.grad = (2 * (w.detach().float() - goal)).to(dtype)
        optimizer.step()
    return ((w.detach().float() - goal) ** 2).mean().item()


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_it_ends_within_one_percent_of_fp32_adamw(rounding):
    ours = quadratic(AdamWBF16, torch.bfloat16, rounding=rounding, seed=3)
    reference = quadratic(torch.optim.AdamW, torch.float32)
    assert ours == pytest.approx(reference, rel=0.01)


def test_the_second_moment_falls_with_zero_gradients():
    w = Parameter(torch.zeros(10_000, dtype=torch.bfloat16))
    optimizer = AdamWBF16([w], lr=1e-4, seed=0)
    w.grad = torch.ones_like(w)
    optimizer.step()
    start = optimizer.state[w]["exp_avg_sq"].float().mean()
    w.grad = torch.zeros_like(w)
    for _ in range(1000):
        optimizer.step()
    assert optimizer.state[w]["exp_avg_sq"].float().mean() / start == pytest.approx(0.3677, rel=0.02)


@pytest.mark.parametrize("number", [1.0009765625, -0.3, 1e-30, 123456.7])
def test_the_mean_of_stochastic_roundings_is_the_number(number):
    x = torch.full((100_000,), number)
    rounded = round_stochastically(x, torch.Generator().manual_seed(5)).double()
    error = rounded.std() / len(x) ** 0.5
    assert (rounded.mean() - x[0].double()).abs() <= 3 * error
    assert rounded.unique().numel() <= 2


def test_rounding_keeps_numbers_that_bf16_holds_and_those_that_are_not_finite():
    x = torch.tensor([0.0, -0.0, 1.5, -2.0, float("inf"), float("-inf")])
    assert torch.equal(round_stochastically(x, torch.Generator()).float(), x)
    assert round_stochastically(torch.tensor([float("nan")]), torch.Generator()).isnan().all()


def test_one_update_follows_the_formula_and_kahan_keeps_what_was_cut_off():
    start = torch.tensor([0.5, -1.25, 3.0]).bfloat16()
    gradient = torch.tensor([0.1, -0.2, 0.003]).bfloat16()
    w = Parameter(start.clone())
    optimizer = AdamWBF16([w], lr=1e-3, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1, rounding="kahan", seed=0)
    w.grad = gradient.clone()
    optimizer.step()
    g = gradient.double()  # in the first step both corrected moments are those of the gradient itself
    expected = start.double() * (1 - 1e-3 * 0.1) - 1e-3 * g / (g.abs() + 1e-6)
    stored = w.detach().double() + optimizer.state[w]["compensation"].double()
    assert torch.allclose(stored, expected, atol=1e-6)
    assert torch.equal(w.detach(), expected.bfloat16())


def test_many_small_tensors_move_as_one_large_tensor_would(monkeypatch):
    monkeypatch.setattr(adamw_bf16, "CHUNK", 8)
    torch.manual_seed(0)
    start, gradients = torch.randn(4, 6).bfloat16(), torch.randn(4, 6).bfloat16()

    def moved(tensors, grads):
        parameters = [Parameter(t.clone()) for t in tensors]
        optimizer = AdamWBF16(parameters, lr=0.5, rounding="kahan", seed=0)
        for p, g in zip(parameters, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
        return torch.cat([p.detach().flatten() for p in parameters])

    assert torch.equal(moved([start], [gradients]), moved(list(start), list(gradients)))


def test_a_flag_on_the_device_drops_the_update_and_nothing_moves():
    w = Parameter(torch.ones(50, dtype=torch.bfloat16))
    optimizer = AdamWBF16([w], lr=0.1, seed=0)
    w.grad = torch.ones_like(w)
    optimizer.step()
    kept = ("step", "exp_avg", "exp_avg_sq")
    before = {k: optimizer.state[w][k].clone() for k in kept} | {"w": w.detach().clone()}
    w.grad = torch.full_like(w, float("nan"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    after = optimizer.state[w] | {"w": w.detach()}
    assert all(torch.equal(after[k], v) for k, v in before.items())
    optimizer.found_inf = torch.zeros(())
    w.grad = torch.ones_like(w)
    optimizer.step()
    assert optimizer.state[w]["step"] == 2 and w.detach().isfinite().all()
    assert not torch.equal(w.detach(), before["w"])


def test_equal_addresses_give_equal_roundings_and_another_seed_gives_others():
    def moved(seed):
        w = Parameter(torch.linspace(-1, 1, 1000).bfloat16())
        optimizer = AdamWBF16([w], lr=1e-4, seed=seed, names=["w"])
        w.grad = torch.ones_like(w)
        optimizer.step()
        return w.detach()

    assert torch.equal(moved(1), moved(1))
    assert not torch.equal(moved(1), moved(2))


def test_a_factor_on_the_device_shrinks_the_gradient_and_a_rate_may_lie_there_too():
    def moved(rate, gradient, factor=None):
        w = Parameter(torch.linspace(-1, 1, 200).bfloat16())
        optimizer = AdamWBF16([w], lr=rate, eps=1e-2, rounding="kahan", seed=0)
        optimizer.gradient_factor = factor
        w.grad = torch.full_like(w, gradient)
        optimizer.step()
        return w.detach()

    plain = moved(0.125, 0.5)
    assert torch.equal(moved(0.125, 1.0, torch.tensor(0.5)), plain)
    assert torch.equal(moved(torch.tensor(0.125), 0.5), plain)
    assert not torch.equal(moved(0.125, 1.0), plain)
