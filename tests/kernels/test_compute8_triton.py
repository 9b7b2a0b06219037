"""Kernels against their plain twins, at the width of a real model."""

import pytest
import torch
from card import CARD
from packed import COMPUTE, drawn, error

from simpletuner.kernels import compute8

pytestmark = CARD
WIDTH = 3072
CAPABLE = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(1536, WIDTH), (20, 15360), (17, 21504), (3, 48)])
def test_rows_are_quantised_as_on_the_processor(dtype, shape):
    if dtype is torch.float8_e4m3fn and not CAPABLE:
        pytest.skip("no fp8 on this card")
    x, fold = drawn(*shape).cuda().bfloat16(), drawn(shape[1], seed=1).cuda().abs()
    x[1] = 0
    for factors in (None, fold):
        codes, scale = compute8.quantize_rows(x, dtype, factors)
        twin, twin_scale = compute8.quantize_rows(x.cpu(), dtype, None if factors is None else factors.cpu())
        torch.testing.assert_close(scale.cpu(), twin_scale, rtol=1e-6, atol=0)
        unequal = codes.cpu().float() != twin.float()  # an approximate division may tip what lies halfway
        assert unequal.float().mean() < 1e-3
    x[0, 5] = float("nan")
    assert compute8.quantize_rows(x, dtype)[1].isnan().tolist()[:3] == [True, False, False]


@pytest.mark.parametrize("shape", [(WIDTH, 12288), (48, 272), (16, 16)])
def test_codes_are_transposed(shape):
    codes = torch.randint(-128, 128, shape, dtype=torch.int8, device="cuda")
    assert torch.equal(compute8.transposed(codes), codes.t())
    assert torch.equal(compute8.transposed(codes.view(torch.float8_e4m3fn)).view(torch.int8), codes.t())


@pytest.mark.parametrize("kind", COMPUTE)
def test_products_in_8_bits_are_those_of_the_codes(kind):
    dtype = COMPUTE[kind]
    if dtype is torch.float8_e4m3fn and not CAPABLE:
        pytest.skip("no fp8 on this card")
    (a, s), (b, t) = (compute8.quantize_rows(drawn(n, WIDTH, seed=n), dtype) for n in (512, 1024))
    bias = drawn(1024)
    expected = compute8.multiply(a, b, s, t, bias, torch.float32)
    found = compute8.multiply(*(part.cuda() for part in (a, b, s, t, bias)), torch.bfloat16)
    assert error(found.cpu(), expected) < 0.004
    found = compute8.multiply(*(part.cuda() for part in (a, b, s)), None, None, torch.bfloat16)
    assert error(found.cpu(), compute8.multiply(a, b, s, None, None, torch.float32)) < 0.004
