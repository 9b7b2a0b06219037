"""Kernels against their plain twins, at the width of a real model."""

import pytest
import torch
from card import CARD
from packed import KINDS, on_card, packed

pytestmark = CARD
WIDTH = 3072


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(WIDTH, WIDTH), (48, 128), (1000, 384), (16, 12288)])
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_unpack_what_their_twins_unpack(kind, shape, dtype):
    from simpletuner.kernels.unpack import unpack

    weight = on_card(packed(kind, *shape))
    found, expected = unpack(weight, dtype), weight.dequantize(dtype)
    assert found.dtype is dtype and found.is_contiguous()
    step = torch.finfo(dtype).eps  # a fused multiplication and addition may round differently, by one step and seldom
    torch.testing.assert_close(found, expected, rtol=step, atol=1e-5 * expected.abs().max().item())
    assert (found != expected).float().mean() < (0.01 if dtype is not torch.float32 else 1.0)


def test_rows_in_the_midst_of_a_matrix_are_unpacked():
    from simpletuner.kernels.unpack import unpack

    for kind in KINDS:
        weight = on_card(packed(kind, 96, WIDTH)).rows(32, 64)
        torch.testing.assert_close(
            unpack(weight, torch.float32), weight.dequantize(torch.float32), rtol=1e-5, atol=1e-4
        )
