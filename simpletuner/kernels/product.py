"""The product of an activation with a frozen matrix, however the matrix is kept, and with low-rank factors on it.

One autograd rule serves every packed kind: forward multiplies with the unpacked matrix, backward unpacks it again, and
only the packed tensors are held in between. The whole product is one operator, opaque to the compiler. Were the
unpacking an operator of its own, the compiler would find the same call in forward and backward, share it, and keep
every unpacked matrix of the model from the one to the other. Factors belong to the operator too, because inside it one
product can add to the result of another where that lies; the compiler copies it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from simpletuner.kernels import compute8
from simpletuner.kernels.device import TRITON
from simpletuner.kernels.weights import Compute8, Groups, Nf4, Plain, Rows

KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Plain, Rows, Compute8, Groups, Nf4)}


def frozen_product(x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias for x (..., in) and any kind of weight: (..., out), in the dtype of x, or of autocast where it is on.

    A packed weight has no gradient; a plain one and the bias have theirs if they ask for it.
    """
    if isinstance(weight, Plain):
        return F.linear(x, weight.weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    if torch.is_autocast_enabled(x.device.type):  # as F.linear does
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return _product(x, *_told(weight), bias)


def adapted_product(
    x: Tensor, weight: Any, bias: Tensor | None, a: Tensor, b: Tensor, *, valued: bool = True
) -> Tensor:
    """x Wᵀ + bias + (x aᵀ) bᵀ, (..., out): x (..., in), a (r, in) and b (out, r) in the dtype of the result.

    No weight has a gradient here, plain or packed. Without `valued` nobody reads the value, see `unvalued_product`.
    """
    if torch.is_autocast_enabled(x.device.type):
        x, a, b = (one.to(torch.get_autocast_dtype(x.device.type)) for one in (x, a, b))
    if not valued:
        return unvalued_product(x, weight, a, b)
    return _adapted_product(x, *_told(weight), bias, a, b)[0]


def unvalued_product(x: Tensor, weight: Any, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    """Stands for x Wᵀ + (x aᵀ) bᵀ (..., out) where nobody reads the value, only the gradients, which are right.

    For what is computed again in a backward pass and would end with a product that has been used already.
    """
    tensors, kind = _told(weight)
    return _Unvalued.apply(x, a, b, weight.shape[0], kind, *tensors)


class _Unvalued(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor | None, b: Tensor | None, num_rows: int, kind: str, *tensors: Tensor
    ) -> Tensor:
        ctx.kind = kind
        ctx.save_for_backward(*((None,) * 4 if a is None else (x, F.linear(x, a), a, b)), *tensors)
        return x.new_empty(*x.shape[:-1], num_rows)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, inner, a, b, *tensors = ctx.saved_tensors
        found = _gradients(ctx.needs_input_grad[0], dy, tensors, ctx.kind, x, inner, a, b)
        return *found, None, None, *(None for _ in tensors)


def _told(weight: Any) -> tuple[list[Tensor], str]:
    """A weight's tensors, and its name and numbers ("Groups 3072 3072"): operators take no named tuples."""
    tensors = [part for part in weight if isinstance(part, Tensor)]
    return tensors, " ".join((type(weight).__name__, *(str(part) for part in weight if not isinstance(part, Tensor))))


def _weight(tensors: Sequence[Tensor], kind: str) -> Any:
    """The inverse of `_told`."""
    name, *numbers = kind.split()
    return KINDS[name](*tensors, *map(int, numbers))


@torch.library.custom_op("simpletuner::packed_product", mutates_args=())
def _product(x: Tensor, tensors: Sequence[Tensor], kind: str, bias: Tensor | None) -> Tensor:
    weight, rows = _weight(tensors, kind), x.reshape(-1, x.shape[-1])
    y = _packed(rows, weight, bias)
    if y is None:
        y = F.linear(rows, plain(weight, x.dtype), None if bias is None else bias.to(x.dtype))
    return y.view(*x.shape[:-1], weight.shape[0])


@_product.register_fake
def _(x: Tensor, tensors: Sequence[Tensor], kind: str, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], _weight(tensors, kind).shape[0])


@torch.library.custom_op("simpletuner::adapted_product", mutates_args=())
def _adapted_product(
    x: Tensor, tensors: Sequence[Tensor], kind: str, bias: Tensor | None, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """The result and x aᵀ (..., r)."""
    weight, rows = _weight(tensors, kind), x.reshape(-1, x.shape[-1])
    inner = F.linear(rows, a)
    y = _packed(rows, weight, bias)
    if y is not None:
        y.addmm_(inner, b.t())
    else:  # the small product goes first: the large one has time to read its result while it computes
        y = F.linear(inner, b, None if bias is None else bias.to(x.dtype))
        y.addmm_(rows, plain(weight, x.dtype).t())
    return y.view(*x.shape[:-1], weight.shape[0]), inner.view(*x.shape[:-1], len(a))


@_adapted_product.register_fake
def _(
    x: Tensor, tensors: Sequence[Tensor], kind: str, bias: Tensor | None, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    return x.new_empty(*x.shape[:-1], _weight(tensors, kind).shape[0]), x.new_empty(*x.shape[:-1], len(a))


@torch.library.custom_op("simpletuner::packed_product_dx", mutates_args=())
def _product_dx(dy: Tensor, tensors: Sequence[Tensor], kind: str, d_inner: Tensor | None, a: Tensor | None) -> Tensor:
    """dy W + d_inner a: the gradient of the input, (..., in) in the dtype of dy (..., out). d_inner: (..., r)."""
    weight, rows = _weight(tensors, kind), dy.reshape(-1, dy.shape[-1])
    quick = compute8.suits(rows, weight)
    if d_inner is None or a is None:
        dx = compute8.product_dx(rows, weight) if quick else rows @ plain(weight, dy.dtype)
    elif quick:
        dx = compute8.product_dx(rows, weight).addmm_(d_inner.reshape(-1, len(a)), a)
    else:
        dx = torch.mm(d_inner.reshape(-1, len(a)), a).addmm_(rows, plain(weight, dy.dtype))  # in this order as above
    return dx.view(*dy.shape[:-1], weight.shape[1])


@_product_dx.register_fake
def _(dy: Tensor, tensors: Sequence[Tensor], kind: str, d_inner: Tensor | None, a: Tensor | None) -> Tensor:
    return dy.new_empty(*dy.shape[:-1], _weight(tensors, kind).shape[1])


def _gradients(
    need_x: bool, dy: Tensor, tensors: Sequence[Tensor], kind: str,
    x: Tensor | None = None, inner: Tensor | None = None, a: Tensor | None = None, b: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Of x, a and b."""
    d_inner = da = db = None
    if x is not None and inner is not None and b is not None:
        d_inner = dy @ b
        da = d_inner.flatten(0, -2).t() @ x.flatten(0, -2)
        db = dy.flatten(0, -2).t() @ inner.flatten(0, -2)
    return _product_dx(dy, tensors, kind, d_inner, a) if need_x else None, da, db


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, tensors, ctx.kind, bias, *factors = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(*((x, output[1], *factors) if factors else (None,) * 4), *tensors)


def _backward(ctx: Any, dy: Tensor, *unused: Any) -> tuple[Any, ...]:
    needed = ctx.needs_input_grad
    x, inner, a, b, *tensors = ctx.saved_tensors
    dx, *factors = _gradients(needed[0], dy, tensors, ctx.kind, x, inner, a, b)
    of_bias = dy.reshape(-1, dy.shape[-1]).sum(0, dtype=ctx.bias_dtype) if needed[3] else None
    return dx, [None] * len(tensors), None, of_bias, *(factors if a is not None else ())


_product.register_autograd(_backward, setup_context=_keep)
_adapted_product.register_autograd(_backward, setup_context=_keep)


def _flops(rows: Sequence[int], kind: str, tensors: Sequence[Sequence[int]], rank: int) -> int:
    """Of the products with a matrix and with factors of that rank, from shapes."""
    numbers = kind.split()[1:3]  # a flat kind tells its size
    out, into = map(int, numbers) if numbers else tensors[0]
    return 2 * prod(rows[:-1]) * (out * into + rank * (out + into))


# The compiler decides by them what it computes again to save memory (`activation_memory_budget`).
@register_flop_formula(torch.ops.simpletuner.packed_product)
def _(x: Any, tensors: Any, kind: str, bias: Any, **_: Any) -> int:
    return _flops(x, kind, tensors, 0)


@register_flop_formula(torch.ops.simpletuner.adapted_product)
def _(x: Any, tensors: Any, kind: str, bias: Any, a: Any, b: Any, **_: Any) -> int:
    return _flops(x, kind, tensors, a[0])


@register_flop_formula(torch.ops.simpletuner.packed_product_dx)
def _(dy: Any, tensors: Any, kind: str, d_inner: Any, a: Any, **_: Any) -> int:
    rank = 0 if a is None else a[0]
    return _flops(dy, kind, tensors, 0) + 2 * prod(dy[:-1]) * rank * (a[1] if rank else 0)


def _packed(rows: Tensor, weight: Any, bias: Tensor | None) -> Tensor | None:
    """x Wᵀ + bias for rows x (M, in), from the packed codes as they are; None where the matrix has to be unpacked."""
    bias = None if bias is None else bias.to(rows.dtype)
    if compute8.suits(rows, weight):
        return compute8.product(rows, weight, bias)
    if TRITON and rows.is_cuda:
        from simpletuner.kernels import few

        if few.suits(rows, weight):
            return few.product(rows, weight, bias)
    return None


def plain(weight: Any, dtype: torch.dtype) -> Tensor:
    """The matrix (out, in) in `dtype`, unpacked by the fastest means there is."""
    if isinstance(weight, Plain):
        return weight.weight.to(dtype)
    if TRITON and weight.codes.is_cuda:
        from simpletuner.kernels.unpack import unpack  # Triton is imported where there is a device for it

        return unpack(weight, dtype)
    return weight.dequantize(dtype)
