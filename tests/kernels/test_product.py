import pytest
import torch
import torch.nn.functional as F
from packed import COMPUTE, KINDS, drawn, packed

from simpletuner.kernels.product import adapted_product, frozen_product
from simpletuner.kernels.weights import Plain, join

WEIGHT_ONLY = [kind for kind in KINDS if kind not in COMPUTE]
OUT, IN = 48, 128


def run(x, weight, bias, dy):
    """y and the gradient of x, on fresh leaves."""
    x = x.detach().clone().requires_grad_()
    y = frozen_product(x, weight, bias)
    y.backward(dy)
    return y, x.grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 5)])
def test_result_and_gradient_are_those_of_the_unpacked_matrix(kind, shape):
    weight, bias = packed(kind, OUT, IN), drawn(OUT, seed=1)
    x, dy = drawn(*shape, IN, seed=2), drawn(*shape, OUT, seed=3)
    y, dx = run(x, weight, bias, dy)
    expected, expected_dx = run(x, Plain(weight.dequantize(torch.float32)), bias, dy)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    torch.testing.assert_close(dx, expected_dx, rtol=1e-5, atol=1e-5 * expected_dx.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", WEIGHT_ONLY)
def test_half_precision_goes_in_and_comes_out(kind, dtype):
    weight, x, dy = packed(kind, OUT, IN), drawn(20, IN).to(dtype), drawn(20, OUT, seed=1).to(dtype)
    y, dx = run(x, weight, drawn(OUT), dy)
    plain = Plain(weight.dequantize(dtype))
    expected, expected_dx = run(x, plain, drawn(OUT).to(dtype), dy)
    assert y.dtype == dx.dtype == dtype
    assert torch.equal(y, expected) and torch.equal(dx, expected_dx)


@pytest.mark.parametrize("kind", KINDS)
def test_strided_inputs_and_gradients_give_the_same(kind):
    weight = packed(kind, OUT, IN)
    x, dy = drawn(4, 6, IN + 32), drawn(6, 4, OUT)
    strided, gradient = x[..., 32:].transpose(0, 1), dy.permute(2, 1, 0).permute(2, 1, 0)
    gradient = torch.empty(OUT, 4, 6).permute(2, 1, 0).copy_(gradient)
    y, dx = run(strided.contiguous(), weight, None, dy)
    leaf = strided.detach().requires_grad_()
    z = frozen_product(leaf, weight)
    z.backward(gradient)
    assert torch.equal(z, y) and torch.equal(leaf.grad, dx)


@pytest.mark.parametrize("kind", KINDS)
def test_only_packed_tensors_wait_for_the_backward_pass(kind):
    weight = packed(kind, OUT, IN)
    x = drawn(20, IN).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        frozen_product(x, weight, drawn(OUT)).sum().backward()
    kept = {part.data_ptr() for part in weight if isinstance(part, torch.Tensor)}
    assert saved and {t.data_ptr() for t in saved} == kept


def test_a_plain_weight_and_a_bias_have_their_gradients():
    weight = torch.ones(4, 3, requires_grad=True)
    frozen_product(torch.ones(2, 3), Plain(weight)).sum().backward()
    assert weight.grad.tolist() == [[2.0] * 3] * 4
    bias = torch.zeros(OUT, requires_grad=True)
    frozen_product(drawn(2, 5, IN), packed("int8", OUT, IN), bias).sum().backward()
    assert bias.grad.tolist() == [10.0] * OUT


def test_nothing_is_computed_for_inputs_without_gradient():
    assert not frozen_product(drawn(2, IN), packed("int8", OUT, IN), drawn(OUT)).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_is_followed_as_linear_follows_it(kind):
    weight, x = packed(kind, OUT, IN), drawn(20, IN).requires_grad_()
    expected = frozen_product(x.detach().bfloat16(), weight)
    with torch.autocast("cpu", torch.bfloat16):
        y = frozen_product(x, weight)
    assert y.dtype is torch.bfloat16 and torch.equal(y, expected)
    y.sum().backward()
    assert x.grad.dtype is torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_the_operators_keep_torchs_rules(kind):
    weight = packed(kind, OUT, IN)
    tensors = [part for part in weight if isinstance(part, torch.Tensor)]
    name = " ".join((type(weight).__name__, *(str(part) for part in weight if not isinstance(part, torch.Tensor))))
    x, dy = drawn(2, 20, IN).requires_grad_(), drawn(2, 20, OUT)
    checks = ["test_autograd_registration", "test_faketensor"]
    checks += [] if "float8" in kind else ["test_schema"]  # which compares tensors in ways that float8 lacks on the CPU
    torch.library.opcheck(torch.ops.simpletuner.packed_product, (x, tensors, name, drawn(OUT)), test_utils=checks)
    factors = drawn(4, IN).requires_grad_(), drawn(OUT, 4).requires_grad_()
    adapted = torch.ops.simpletuner.adapted_product
    torch.library.opcheck(adapted, (x, tensors, name, drawn(OUT), *factors), test_utils=checks)
    torch.library.opcheck(torch.ops.simpletuner.packed_product_dx, (dy, tensors, name, None, None), test_utils=checks)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_in_one_piece_it_saves_nothing_unpacked(kind):
    """Twice the same weight: a compiler that sees the unpacking would share it between the products and keep it."""
    torch._dynamo.reset()
    weight = join([packed(kind, 128, 128, seed) for seed in (1, 2)])

    def twice(x, weight):
        first = frozen_product(x, weight.rows(0, 128))
        return frozen_product(F.gelu(first), weight.rows(0, 128)).square().mean()

    x = drawn(20, 128).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        loss = torch.compile(twice, fullgraph=True)(x, weight)
    loss.backward()
    compiled, x.grad = x.grad, None
    expected = twice(x, weight)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(compiled, x.grad, rtol=1e-4, atol=1e-5 * x.grad.abs().max().item())
    floating = [t.numel() for t in saved if t.dtype in (torch.float32, torch.bfloat16)]
    assert floating and max(floating) < 128 * 128


@pytest.mark.parametrize("kind", [*KINDS, "plain"])
def test_factors_on_top_follow_autocast(kind):
    weight, x = packed(kind, OUT, IN), drawn(20, IN)
    a, b = drawn(4, IN, seed=1), drawn(OUT, 4, seed=2)
    expected = adapted_product(x.bfloat16(), weight, drawn(OUT), a.bfloat16(), b.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        y = adapted_product(x, weight, drawn(OUT), a, b)
    assert y.dtype is torch.bfloat16 and torch.equal(y, expected)
