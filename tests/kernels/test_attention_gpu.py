"""Attention kernels on a card: each that is there is chosen, computes the same, and takes masks."""

import pytest
import torch
from card import CARD, COMPILER
from packed import drawn, error

from simpletuner.errors import ConfigError
from simpletuner.kernels import attention

pytestmark = [
    *CARD,
    *COMPILER,
]
SHAPE = (2, 200, 4, 128)  # B, S, heads, width
MASKS = {"none": None, "boolean": torch.arange(200) < torch.tensor([130, 200])[:, None, None, None],
         "bias": drawn(200, 200, seed=9)}  # fmt: skip


@pytest.fixture(autouse=True)
def as_in_a_run():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


def results(kernel, mask, dtype):
    q, k, v = (drawn(*SHAPE, seed=seed).bfloat16().cuda().to(dtype).requires_grad_() for seed in range(3))
    if mask is not None:
        mask = mask.cuda() if mask.dtype == torch.bool else mask.cuda().bfloat16().to(dtype)
    out = kernel(q, k, v, mask)
    gradient = drawn(*out.shape, seed=3).bfloat16().cuda().to(dtype)
    return [out, *torch.autograd.grad(out, (q, k, v), gradient)]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("name", attention.KERNELS)
def test_output_and_gradients_are_those_in_fp32(name, mask):
    try:
        chosen = attention.choose(name, torch.device("cuda"), torch.bfloat16)
    except ConfigError as missing:
        pytest.skip(str(missing))
    exact = results(attention.sdpa, mask, torch.float32)
    theirs = results(attention.sdpa, mask, torch.bfloat16)
    for found, other, wanted in zip(results(chosen.training, mask, torch.bfloat16), theirs, exact, strict=True):
        assert error(found, wanted) < max(1.5 * error(other, wanted), 0.006)


def test_the_default_is_cudnn_from_hopper_on():
    hopper = torch.cuda.get_device_capability() >= attention.HOPPER
    chosen = attention.choose("diffusers", torch.device("cuda"), torch.bfloat16)
    assert chosen.name == ("cudnn" if hopper else "sdpa")
    assert attention.choose("diffusers", torch.device("cuda"), torch.float32).name == "sdpa"


@pytest.mark.parametrize("name", attention.SAGE_KERNELS)
def test_sage_samples_or_says_why_not(name):
    chosen = attention.choose(name, torch.device("cuda"), torch.bfloat16)
    if name not in chosen.name:
        return
    with torch.no_grad():
        q, k, v = (drawn(*SHAPE, seed=seed).bfloat16().cuda() for seed in range(3))
        assert error(chosen.sampling(q, k, v, None), attention.sdpa(q, k, v, None)) < attention.TOLERANCE_8
