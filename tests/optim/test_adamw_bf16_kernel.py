"""The kernel against its plain twin. On a GPU, or on the CPU where TRITON_INTERPRET=1 has Triton interpret it."""

import os

import pytest
import torch
from torch.nn import Parameter

from simpletuner.optim import adamw_bf16
from simpletuner.optim.adamw_bf16 import AdamWBF16
from simpletuner.training.state import load_optimizer, save_optimizer

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="needs a CUDA device"),
]
SHAPES = [(16, 192), (5,), (3000,), (64, 48)]  # two that are multiples of 16, one shorter than a block, one longer


@pytest.fixture(params=["stochastic", "kahan"])
def rounding(request):
    return request.param


@pytest.fixture
def plain(monkeypatch):
    """Within it the twin does the work."""

    def without_kernel():
        return monkeypatch.setattr(adamw_bf16, "fused", lambda: None)

    return without_kernel


def weights(shapes=SHAPES, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    return [Parameter((torch.randn(s, generator=generator) * scale).bfloat16().to(DEVICE)) for s in shapes]


def made(parameters, rounding="stochastic", **changes):
    changes = {"lr": 1e-2, "weight_decay": 0.1, "seed": 3} | changes
    return AdamWBF16(parameters, rounding=rounding, **changes)


def give(parameters, step, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(100 + step)
    for p in parameters:
        gradient = torch.randn(p.shape, generator=generator).bfloat16()
        if dtype != torch.bfloat16:
            p.grad_dtype = dtype
        p.grad = gradient.to(DEVICE, dtype)


def steps(parameters, optimizer, count, start=0):
    for step in range(start, start + count):
        give(parameters, step)
        optimizer.step()


def exact(parameters, optimizer, index):
    """The weight before it was rounded, where rounding kept what it cut off."""
    p = parameters[index]
    return p.detach().float() + optimizer.state[p]["compensation"].float()


def everything(parameters, optimizer):
    states = [optimizer.state[p] for p in parameters]
    return [p.detach().clone() for p in parameters] + [s[key].clone() for s in states for key in sorted(s)]


def test_the_kernel_is_what_runs():
    parameters = weights()
    optimizer = made(parameters)
    steps(parameters, optimizer, 1)
    assert optimizer._tables


def test_three_steps_with_kahan_are_those_of_the_twin(plain):
    ours, theirs = weights(), weights()
    mine, other = made(ours, "kahan"), made(theirs, "kahan")
    for optimizer in (mine, other):
        optimizer.gradient_factor = torch.tensor(0.5, device=DEVICE)
    steps(ours, mine, 3)
    plain()
    steps(theirs, other, 3)
    assert not other._tables
    for index, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        # Moments are rounded by chance, so they may be a bf16 step apart, and the update with them.
        torch.testing.assert_close(exact(ours, mine, index), exact(theirs, other, index), rtol=1e-4, atol=2e-3)
        for name in ("exp_avg", "exp_avg_sq"):
            a, b = mine.state[p][name].float(), other.state[q][name].float()
            torch.testing.assert_close(a, b, rtol=3 * 2**-7, atol=1e-2)
        assert mine.state[p]["step"] == other.state[q]["step"] == 3


def test_one_step_is_the_twins_within_one_step_of_bf16(plain, rounding):
    ours, theirs = weights(), weights()
    mine, other = made(ours, rounding), made(theirs, rounding)
    steps(ours, mine, 1)
    plain()
    steps(theirs, other, 1)
    for p, q in zip(ours, theirs, strict=True):
        apart = (p.detach().float() - q.detach().float()).abs()
        assert (apart <= q.detach().float().abs() * 2**-7 + 1e-6).all()
        assert apart.mean() > 0 or rounding == "kahan" or p.numel() < 100  # which may all be rounded alike


def test_the_mean_of_many_roundings_is_the_unrounded_weight():
    count, start = 65536, 1.0
    p = Parameter(torch.full((count,), start, dtype=torch.bfloat16, device=DEVICE))
    optimizer = made([p], lr=1e-3, weight_decay=0.0)
    p.grad = torch.ones_like(p)
    optimizer.step()
    moved = p.detach().double()
    assert moved.unique().numel() == 2
    assert (moved.mean() - (start - 1e-3)).abs() <= 4 * moved.std() / count**0.5
    for name, number in (("exp_avg", 0.1), ("exp_avg_sq", 1e-3)):
        kept = optimizer.state[p][name].double()
        assert kept.unique().numel() == 2
        assert (kept.mean() - number).abs() <= 4 * kept.std() / count**0.5 + 1e-6 * number


def test_roundings_of_weights_moments_tensors_and_steps_do_not_agree():
    parameters = [Parameter(torch.ones(8192, dtype=torch.bfloat16, device=DEVICE)) for _ in range(2)]
    optimizer = made(parameters, lr=1e-3, weight_decay=0.0)
    drawn = []
    for _ in range(2):
        with torch.no_grad():
            for p in parameters:
                p.fill_(1.0)
                optimizer.state[p]["exp_avg"].zero_() if optimizer.state[p] else None
                optimizer.state[p]["exp_avg_sq"].zero_() if optimizer.state[p] else None
                p.grad = torch.ones_like(p)
        optimizer.step()
        for p in parameters:
            drawn += [
                t == t.max() for t in (p.detach(), optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"])
            ]
    halves = [part for bits in drawn for part in (bits.view(-1, 2048)[:, :1024], bits.view(-1, 2048)[:, 1024:])]
    signs = torch.stack([bits.flatten().float() - bits.float().mean() for bits in halves])
    correlation = torch.corrcoef(signs).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / signs.shape[1] ** 0.5


def test_a_flag_on_the_device_drops_the_update_and_only_the_address_goes_on(rounding):
    parameters = weights()
    optimizer = made(parameters, rounding)
    steps(parameters, optimizer, 1)
    before = everything(parameters, optimizer)
    calls = optimizer.state[parameters[0]]["calls"].item()
    optimizer.found_inf = torch.ones((), device=DEVICE)
    give(parameters, 1)
    parameters[0].grad.fill_(float("nan"))
    optimizer.step()
    for p in parameters:
        assert optimizer.state[p]["calls"] == calls + 1
        optimizer.state[p]["calls"].sub_(1)
    assert all(torch.equal(a, b) for a, b in zip(everything(parameters, optimizer), before, strict=True))
    optimizer.found_inf = torch.zeros((), device=DEVICE)
    steps(parameters, optimizer, 1, start=1)
    assert optimizer.state[parameters[0]]["step"] == 2 and parameters[0].isfinite().all()


def test_a_resumed_run_repeats_every_bit(tmp_path, rounding):
    names = [f"layer.{i}" for i in range(len(SHAPES))]
    straight = weights()
    optimizer = made(straight, rounding, names=names)
    steps(straight, optimizer, 2)
    save_optimizer(optimizer, names, tmp_path)
    saved = [p.detach().clone() for p in straight]
    steps(straight, optimizer, 3, start=2)

    resumed = [Parameter(p.clone()) for p in saved]
    fresh = made(resumed, rounding, names=names)
    assert load_optimizer(fresh, names, tmp_path)
    steps(resumed, fresh, 3, start=2)
    pairs = zip(everything(straight, optimizer), everything(resumed, fresh), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)

    with torch.no_grad():  # and one that goes back within its process
        for p, old in zip(straight, saved, strict=True):
            p.copy_(old)
    assert load_optimizer(optimizer, names, tmp_path)
    steps(straight, optimizer, 3, start=2)
    pairs = zip(everything(straight, optimizer), everything(resumed, fresh), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="gradients have the dtype of their weights")
def test_gradients_may_be_fp32():
    ours, theirs = weights(), weights()
    mine, other = made(ours), made(theirs)
    give(ours, 0), give(theirs, 0, torch.float32)
    mine.step(), other.step()
    assert theirs[0].grad.dtype == torch.float32
    pairs = zip(everything(ours, mine), everything(theirs, other), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_another_seed_rounds_otherwise():
    ours, theirs = weights(), weights()
    steps(ours, made(ours, seed=1), 1)
    steps(theirs, made(theirs, seed=2), 1)
    assert not torch.equal(ours[0], theirs[0])


def test_tensors_that_lie_at_odd_addresses_move_as_others_do():
    ours, theirs = weights(), weights()
    odd = []
    for p in theirs:
        room = torch.empty(p.numel() + 1, dtype=torch.bfloat16, device=DEVICE)
        room[1:].copy_(p.detach().flatten())
        odd.append(Parameter(room[1:].view(p.shape)))
    steps(ours, made(ours), 2)
    steps(odd, made(odd), 2)
    assert all(torch.equal(p, q) for p, q in zip(ours, odd, strict=True))


def test_parameters_without_a_gradient_stay_and_may_join_later():
    parameters = weights()
    optimizer = made(parameters)
    give(parameters, 0)
    before, parameters[1].grad = parameters[1].detach().clone(), None
    optimizer.step()
    assert torch.equal(parameters[1], before) and not optimizer.state[parameters[1]]
    steps(parameters, optimizer, 1, start=1)
    assert [optimizer.state[p]["step"].item() for p in parameters] == [2, 1, 2, 2]


def test_it_lowers_a_quadratic_as_fp32_adamw_does():
    goal = torch.randn(2000, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    count = 20 if INTERPRETED else 1000
    results = []
    for dtype, kind in ((torch.bfloat16, made), (torch.float32, torch.optim.AdamW)):
        w = Parameter(torch.zeros(2000, dtype=dtype, device=DEVICE))
        optimizer = kind([w], lr=1e-3, weight_decay=0.01)
        for _ in range(count):
            w.grad = (2 * (w.detach().float() - goal)).to(dtype)
            optimizer.step()
        results.append(((w.detach().float() - goal) ** 2).mean().item())
    assert results[0] == pytest.approx(results[1], rel=0.01)


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
def test_a_cuda_graph_repeats_what_eager_steps_do(rounding):
    def run(recorded):
        parameters = weights()
        optimizer = made(parameters, rounding, lr=torch.tensor(1e-2, device=DEVICE))
        optimizer.found_inf = torch.zeros((), device=DEVICE)
        give(parameters, 0)
        held = [p.grad for p in parameters]
        optimizer.step()
        graph = torch.cuda.CUDAGraph()
        if recorded:
            with torch.cuda.graph(graph):
                optimizer.step()
        for step in range(1, 4):
            give(parameters, step)
            for p, mine in zip(parameters, held, strict=True):
                mine.copy_(p.grad)
                p.grad = mine
            optimizer.param_groups[0]["lr"].fill_(1e-2 / step)
            graph.replay() if recorded else optimizer.step()
        return everything(parameters, optimizer)

    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False), strict=True))


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
def test_a_graph_that_makes_its_gradients_may_be_replayed_between_eager_steps():
    """Gradients of the graph lie elsewhere than those of eager steps, so each has its own table of addresses."""

    def run(recorded):
        parameters = weights()
        optimizer = made(parameters, "kahan")
        source = [torch.zeros_like(p) for p in parameters]

        def whole():
            for p, numbers in zip(parameters, source, strict=True):
                p.grad = numbers * 2
            optimizer.step()

        whole()
        graph = torch.cuda.CUDAGraph()
        if recorded:
            with torch.cuda.graph(graph):
                whole()
        for step in range(4):
            torch._foreach_zero_(source)
            torch._foreach_add_(source, step + 1.0)
            graph.replay() if recorded and step % 2 else whole()
        return everything(parameters, optimizer)

    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False), strict=True))


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
def test_the_host_does_not_wait_and_nothing_is_compiled_anew():
    parameters = weights([(16, 3072)] * 600 + [(16, 5)] * 3)
    optimizer = made(parameters)
    steps(parameters, optimizer, 2)
    give(parameters, 2)
    optimizer.found_inf = torch.zeros((), device=DEVICE)
    torch.cuda.synchronize()
    optimizer.param_groups[0]["lr"] = 1.0
    variants = [len(caches[0]) for caches in adamw_bf16.fused()._adamw.device_caches.values()]
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert variants == [len(caches[0]) for caches in adamw_bf16.fused()._adamw.device_caches.values()]
