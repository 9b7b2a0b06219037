"""The product of an activation with a frozen matrix, however the matrix is kept.

One autograd rule serves every packed kind: forward multiplies with the unpacked matrix, backward unpacks it again, and
only the packed tensors are held in between. The whole product is one operator, opaque to the compiler. Were the
unpacking an operator of its own, the compiler would find the same call in forward and backward, share it, and keep
every unpacked matrix of the model from the one to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simpletuner.kernels import compute8
from simpletuner.kernels.device import TRITON
from simpletuner.kernels.weights import Compute8, Groups, Nf4, Plain, Rows

KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Rows, Compute8, Groups, Nf4)}


def frozen_product(x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias for x (..., in) and any kind of weight: (..., out), in the dtype of x, or of autocast where it is on.

    A packed weight has no gradient; a plain one and the bias have theirs if they ask for it.
    """
    if isinstance(weight, Plain):
        return F.linear(x, weight.weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    if torch.is_autocast_enabled(x.device.type):  # as F.linear does
        x = x.to(torch.get_autocast_dtype(x.device.type))
    tensors = [part for part in weight if isinstance(part, Tensor)]
    return _product(x, tensors, bias, _told(weight))


def unvalued_product(x: Tensor, weight: Any, inner: Tensor | None = None, outer: Tensor | None = None) -> Tensor:
    """Stands for x W^T + inner outer^T (..., out) where nobody reads the value, only the gradients, which are right.

    For what is computed again in a backward pass and would end with a product that has been used already. inner:
    (..., r), outer: (out, r), or neither.
    """
    tensors = [part for part in weight if isinstance(part, Tensor)]
    kind = "" if isinstance(weight, Plain) else _told(weight)
    return _Unvalued.apply(x, inner, outer, weight.shape[0], kind, *tensors)


class _Unvalued(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, inner: Tensor | None, outer: Tensor | None, num_rows: int, kind: str, *tensors: Tensor
    ) -> Tensor:
        ctx.kind, ctx.adapted = kind, inner is not None
        ctx.save_for_backward(*([inner, outer] if inner is not None else []), *tensors)
        return x.new_empty(*x.shape[:-1], num_rows)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = list(ctx.saved_tensors)
        d_inner = d_outer = None
        if ctx.adapted:
            inner, outer = saved.pop(0), saved.pop(0)
            d_inner = dy @ outer
            d_outer = dy.flatten(0, -2).t() @ inner.flatten(0, -2)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _product_dx(dy, saved, ctx.kind) if ctx.kind else dy @ saved[0].to(dy.dtype)
        return dx, d_inner, d_outer, None, None, *(None for _ in saved)


def _told(weight: Any) -> str:
    numbers = [str(part) for part in weight if not isinstance(part, Tensor)]
    return " ".join((type(weight).__name__, *numbers))


def _weight(tensors: Sequence[Tensor], kind: str) -> Any:
    """A weight from its tensors and its name and numbers ("Groups 3072 3072"): operators take no named tuples."""
    name, *numbers = kind.split()
    return KINDS[name](*tensors, *map(int, numbers))


@torch.library.custom_op("simpletuner::packed_product", mutates_args=())
def _product(x: Tensor, tensors: Sequence[Tensor], bias: Tensor | None, kind: str) -> Tensor:
    weight = _weight(tensors, kind)
    rows = x.reshape(-1, x.shape[-1])
    bias = None if bias is None else bias.to(x.dtype)
    if compute8.suits(rows, weight):
        y = compute8.product(rows, weight, bias)
    else:
        y = F.linear(rows, plain(weight, x.dtype), bias)
    return y.view(*x.shape[:-1], weight.shape[0])


@_product.register_fake
def _(x: Tensor, tensors: Sequence[Tensor], bias: Tensor | None, kind: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], _weight(tensors, kind).shape[0])


@torch.library.custom_op("simpletuner::packed_product_dx", mutates_args=())
def _product_dx(dy: Tensor, tensors: Sequence[Tensor], kind: str) -> Tensor:
    """dy W: the gradient of the input, (..., in) in the dtype of dy (..., out)."""
    weight = _weight(tensors, kind)
    rows = dy.reshape(-1, dy.shape[-1])
    dx = compute8.product_dx(rows, weight) if compute8.suits(rows, weight) else rows @ plain(weight, dy.dtype)
    return dx.view(*dy.shape[:-1], weight.shape[1])


@_product_dx.register_fake
def _(dy: Tensor, tensors: Sequence[Tensor], kind: str) -> Tensor:
    return dy.new_empty(*dy.shape[:-1], _weight(tensors, kind).shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, tensors, bias, ctx.kind = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    need_x, _, need_bias, *_ = ctx.needs_input_grad
    dx = _product_dx(dy, ctx.saved_tensors, ctx.kind) if need_x else None
    db = dy.reshape(-1, dy.shape[-1]).sum(0, dtype=ctx.bias_dtype) if need_bias else None
    return dx, [None] * len(ctx.saved_tensors), db, None


_product.register_autograd(_backward, setup_context=_keep)


def plain(weight: Any, dtype: torch.dtype) -> Tensor:
    """The matrix (out, in) in `dtype`, unpacked by the fastest means there is."""
    if TRITON and weight.codes.is_cuda:
        from simpletuner.kernels.unpack import unpack  # Triton is imported where there is a device for it

        return unpack(weight, dtype)
    return weight.dequantize(dtype)
