"""Products on the device, at the width of a real model."""

import pytest
import torch
from card import CARD
from packed import COMPUTE, KINDS, drawn, error, on_card, packed

from simpletuner.kernels.product import adapted_product, frozen_product
from simpletuner.kernels.weights import Plain

pytestmark = CARD
WIDTH = 3072
BOUND = {"compute int8": 0.012, "compute float8": 0.038}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_rows", [1, 3, 1536])
def test_product_and_gradient_at_full_width(kind, num_rows):
    weight, bias = on_card(packed(kind, WIDTH, WIDTH)), drawn(WIDTH).cuda().bfloat16()
    x = drawn(1, num_rows, WIDTH, seed=1).cuda().bfloat16().requires_grad_()
    dy = drawn(1, num_rows, WIDTH, seed=2).cuda().bfloat16()
    y = frozen_product(x, weight, bias)
    (dx,) = torch.autograd.grad(y, x, dy)
    expected = frozen_product(x, Plain(weight.dequantize(torch.bfloat16)), bias)
    (expected_dx,) = torch.autograd.grad(expected, x, dy)
    bound = BOUND[kind] if kind in COMPUTE and num_rows > 16 else 0.005
    assert error(y, expected) < bound and error(dx, expected_dx) < bound


@pytest.mark.parametrize("kind", KINDS + ["plain"])
@pytest.mark.parametrize("num_rows", [2, 1536])
def test_factors_on_top_at_full_width(kind, num_rows):
    def on(*shape, seed, size=1.0):
        return (drawn(*shape, seed=seed) * size).cuda().bfloat16()

    weight, bias = on_card(packed(kind, 2 * WIDTH, WIDTH)), on(2 * WIDTH, seed=1)
    x, a = on(1, num_rows, WIDTH, seed=2).requires_grad_(), on(16, WIDTH, seed=3, size=0.02).requires_grad_()
    b, dy = on(2 * WIDTH, 16, seed=4).requires_grad_(), on(1, num_rows, 2 * WIDTH, seed=5)
    y = adapted_product(x, weight, bias, a, b)
    expected = frozen_product(x, Plain(weight.dequantize(torch.bfloat16)), bias) + x @ a.t() @ b.t()
    bound = BOUND[kind] if kind in COMPUTE and num_rows > 16 else 0.006
    assert error(y, expected) < bound
    found, wanted = (torch.autograd.grad(one, (x, a, b), dy) for one in (y, expected))
    assert all(error(one, other) < bound for one, other in zip(found, wanted, strict=True))
    unvalued = torch.autograd.grad(adapted_product(x, weight, bias, a, b, valued=False), (x, a, b), dy)
    assert all(torch.equal(one, other) for one, other in zip(unvalued, found, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_recorded_in_a_graph_without_a_wait(kind):
    weight = on_card(packed(kind, WIDTH, WIDTH))
    x = drawn(64, WIDTH).cuda().bfloat16().requires_grad_()

    def step():
        (dx,) = torch.autograd.grad(frozen_product(x, weight).square().sum(), x)
        return dx

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    with torch.no_grad():
        x.copy_(drawn(64, WIDTH, seed=7))
    graph.replay()
    assert error(found, step()) < 0.01
