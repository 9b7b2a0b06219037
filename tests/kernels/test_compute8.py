import pytest
import torch
from packed import COMPUTE, drawn, error, packed

from simpletuner.kernels import compute8
from simpletuner.kernels.compute8 import multiply, quantize_rows, suits, transposed
from simpletuner.kernels.product import frozen_product
from simpletuner.kernels.weights import Compute8

BOUND = {torch.int8: 0.012, torch.float8_e4m3fn: 0.038}  # relative error on Gaussian data
SIZE = 1024


def setting(dtype):
    """x, dy and W, all Gaussian, and W quantised."""
    w = drawn(SIZE, SIZE)
    return drawn(SIZE, SIZE, seed=1), drawn(SIZE, SIZE, seed=2), w, Compute8(*quantize_rows(w, dtype))


@pytest.mark.parametrize("dtype", BOUND)
def test_errors_on_gaussian_data_are_within_the_bounds(dtype):
    x, dy, w, weight = setting(dtype)
    x.requires_grad_()
    y = frozen_product(x, weight)
    y.backward(dy)
    assert error(y.detach(), x.detach() @ w.t()) < BOUND[dtype]
    assert error(x.grad, dy @ w) < BOUND[dtype]


@pytest.mark.parametrize("dtype", BOUND)
def test_the_row_scale_must_be_folded_in_before_quantising(dtype):
    """The sum of backward runs over rows of unlike scales: taking them for their mean misses both bounds by far."""
    _, dy, w, weight = setting(dtype)
    codes, scale = quantize_rows(dy, dtype)
    unfolded = multiply(codes, transposed(weight.codes), scale * weight.scale.mean(), None, None, dy.dtype)
    assert error(unfolded, dy @ w) > 2 * BOUND[dtype]


@pytest.mark.parametrize("dtype", BOUND)
def test_codes_are_exact_at_the_ends_of_a_row(dtype):
    x = torch.tensor([[2.0, -4.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    codes, scale = quantize_rows(x, dtype)
    largest = compute8.LARGEST[dtype]
    assert codes.dtype is dtype and codes[0, 1].item() == -largest and codes[0, 2].item() == 0
    assert scale.tolist() == [pytest.approx(4 / largest), 0.0]
    assert codes[1].float().tolist() == [0.0] * 4
    folded, _ = quantize_rows(x, dtype, fold=torch.tensor([4.0, 1.0, 1.0, 1.0]))
    assert folded[0, 0].item() == largest


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_the_result(dtype, bad):
    """Integers have no NaN: the scale carries it to the guard before the optimizer."""
    x, weight = drawn(32, 128), packed(next(kind for kind in COMPUTE if COMPUTE[kind] is dtype), 48, 128)
    x[3, 7] = bad
    finite = frozen_product(x, weight).isfinite().all(dim=1)
    assert finite.sum() == 31 and not finite[3]


@pytest.mark.parametrize("kind", COMPUTE)
def test_shapes_that_cannot_be_multiplied_in_8_bits_are_unpacked(kind):
    weight = packed(kind, 48, 128)
    assert suits(drawn(17, 128), weight)
    assert not suits(drawn(16, 128), weight)
    assert not suits(drawn(17, 128), packed(kind, 40, 128)) and not suits(drawn(17, 128), packed("int8", 48, 128))
    x = drawn(16, 128)
    torch.testing.assert_close(frozen_product(x, weight), x @ weight.dequantize(torch.float32).t())


def test_integers_are_summed_exactly():
    a, b = (torch.randint(-127, 128, (20, 21504), dtype=torch.int8) for _ in range(2))
    sums = multiply(a, b, torch.ones(20), None, None, torch.float64)
    exact = a.long() @ b.long().t()
    assert (sums.float() == exact.float()).all()
