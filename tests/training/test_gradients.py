"""Measuring and limiting gradients: plainly, by a kernel, and through an optimizer that shrinks what it reads."""

import os

import pytest
import torch
from torch.nn import Parameter

from simpletuner.kernels.device import TRITON
from simpletuner.optim.adamw_bf16 import AdamWBF16
from simpletuner.training.gradients import Gradients

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda"
SHAPES = [(16, 3072), (5,), (4000,), (7, 11)]
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="needs a CUDA device"),
]


def weights(dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    parameters = [Parameter(torch.zeros(shape, dtype=dtype, device=DEVICE)) for shape in shapes]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator).to(DEVICE, dtype)
    return parameters


def test_an_optimizer_that_takes_a_factor_moves_as_if_its_gradients_were_shrunk():
    def moved(reader):
        parameters = weights(torch.bfloat16, [(64, 64), (7,)])
        optimizer = AdamWBF16(parameters, lr=0.1, eps=1.0, rounding="kahan", seed=0)
        gradients = Gradients(parameters, optimizer=optimizer if reader else None)
        before = [p.grad.clone() for p in parameters]
        gradients.clip(gradients.measure()[0], 2.0, "norm")
        untouched = all(torch.equal(p.grad, old) for p, old in zip(parameters, before, strict=True))
        assert untouched is reader
        optimizer.step()
        return [p.detach().float() for p in parameters]

    for ours, theirs in zip(moved(True), moved(False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=1e-6)  # the other way gradients are rounded once more


def test_a_factor_does_not_outlive_its_step():
    parameters = weights(torch.bfloat16)
    optimizer = AdamWBF16(parameters, seed=0)
    gradients = Gradients(parameters, optimizer=optimizer)
    gradients.clip(gradients.measure()[0], 1.0, "norm")
    assert 0 < optimizer.gradient_factor < 0.1
    gradients.clip(gradients.measure()[0], 0.5, "value")
    assert optimizer.gradient_factor is None and parameters[0].grad.abs().max() == 0.5
    gradients.clip(gradients.measure()[0], 1.0, "norm")
    gradients.clip(gradients.measure()[0], 0.0, "norm")
    assert optimizer.gradient_factor is None


class TestKernel:
    pytestmark = on_gpu

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_it_measures_what_all_numbers_together_are(self, dtype):
        parameters = weights(dtype)
        gradients = Gradients(parameters)
        for scale in (1.0, 3.0):  # at the same addresses
            torch._foreach_mul_(gradients.tensors(), scale)
            measured = gradients.measure()
            everything = torch.cat([p.grad.flatten().double() for p in parameters])
            expected = torch.stack([everything.norm(), everything.abs().max()]).float()
            torch.testing.assert_close(measured, expected, rtol=1e-6, atol=0)
        assert TRITON and gradients.fused is not None

    def test_gradients_that_lie_elsewhere_or_are_fewer_are_measured_anew(self):
        parameters = weights()
        gradients = Gradients(parameters)
        first = gradients.measure().clone()
        for p in parameters:
            p.grad = torch.cat([p.grad.flatten(), p.grad.flatten()])[p.numel() :].view(p.shape) * 2
        torch.testing.assert_close(gradients.measure(), first * 2)
        parameters[0].grad = None
        rest = torch.cat([p.grad.flatten() for p in parameters[1:]])
        torch.testing.assert_close(gradients.measure(), torch.stack([rest.norm(), rest.abs().max()]))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_numbers_that_are_not_finite_show(self, bad):
        parameters = weights()
        parameters[2].grad[3999] = bad
        assert not Gradients(parameters).measure()[0].isfinite()

    def test_a_mixture_of_dtypes_is_measured_plainly(self):
        parameters = [*weights(), *weights(torch.bfloat16)]
        gradients = Gradients(parameters)
        everything = torch.cat([p.grad.flatten().double() for p in parameters])
        assert gradients.measure()[0].item() == pytest.approx(everything.norm().item(), rel=1e-5)
        assert gradients.fused is None
