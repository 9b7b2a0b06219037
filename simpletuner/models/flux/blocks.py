"""The two kinds of Flux blocks as functions: tensors in, tensors out, over the checkpoint's own weights.

One function serves all blocks of its kind, so it is compiled once. diffusers' modules are the plain twin:
tests/models/test_flux_forward.py compares outputs and all gradients. B pictures, S tokens, D = heads x head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simpletuner.kernels.attention import Attention
from simpletuner.kernels.lora import Linear, adapted

EPS = 1e-6  # of all norms
LIMIT = 65504.0  # the largest fp16 number: activations of the last blocks may leave its range


class Side(NamedTuple):
    """The layers that one of the two streams of a double block has: weights, or the factors on them."""

    qkv: Any
    out: Any
    up: Any
    down: Any


class DoubleWeights(NamedTuple):
    image: Side  # of Linear
    text: Side
    norms: tuple[Tensor, Tensor, Tensor, Tensor]  # (head width,): image q, image k, text q, text k


class SingleWeights(NamedTuple):
    enter: Linear  # q, k, v and the first layer of the MLP
    leave: Linear
    norms: tuple[Tensor, Tensor]  # q, k


def double_block(
    attention: Attention,
    weights: DoubleWeights,
    factors: tuple[Side, Side],  # image, text: tuples of LowRank or None for each joined layer
    image: Tensor,  # (B, image tokens, D)
    text: Tensor,  # (B, text tokens, D)
    modulation: Tensor,  # (B, 12, D): shift, scale, gate of attention and of MLP; image first
    cos: Tensor,  # (S, head width / 2), fp32, text tokens first
    sin: Tensor,
    mask: Tensor | None = None,  # of attention
    *,
    valued: bool = True,
) -> tuple[Tensor, Tensor]:
    """(image, text) after one double block: separate weights, one attention over both.

    Without `valued` the result is fit for a backward pass only: its last products are left out.
    """
    valued = _needed(valued, image, modulation)
    m = modulation[:, :, None].unbind(1)  # 12 of (B, 1, D)
    q_image, k_image, v_image = _heads(_normed(image, m[0], m[1]), weights.image.qkv, factors[0].qkv, cos)
    q_text, k_text, v_text = _heads(_normed(text, m[6], m[7]), weights.text.qkv, factors[1].qkv, cos)
    norms = weights.norms
    q = rotated(torch.cat([rms_norm(q_text, norms[2]), rms_norm(q_image, norms[0])], 1), cos, sin)
    k = rotated(torch.cat([rms_norm(k_text, norms[3]), rms_norm(k_image, norms[1])], 1), cos, sin)
    attended = attention(q, k, torch.cat([v_text, v_image], 1), mask)
    of_text, of_image = attended[:, : text.shape[1]], attended[:, text.shape[1] :]
    image = _mixed(image, of_image, weights.image, factors[0], m[2:6], valued)
    text = _mixed(text, of_text, weights.text, factors[1], m[8:12], valued)
    return image, text


def single_block(
    attention: Attention,
    weights: SingleWeights,
    factors: tuple[Any, Any],
    x: Tensor,  # (B, S, D), text tokens first
    modulation: Tensor,  # (B, 3, D): shift, scale, gate
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None = None,
    *,
    valued: bool = True,
) -> tuple[Tensor]:
    """x after one single block: attention and MLP side by side. valued: see `double_block`."""
    valued = _needed(valued, x, modulation)
    shift, scale, gate = modulation[:, :, None].unbind(1)
    d = x.shape[-1]
    wide = weights.enter.weight.shape[0] - 3 * d  # of the MLP
    y = adapted(_normed(x, shift, scale), weights.enter, factors[0], (d, d, d, wide))
    width = 2 * cos.shape[-1]
    q, k, v = (part.unflatten(-1, (-1, width)) for part in y[..., : 3 * d].chunk(3, -1))
    q = rotated(rms_norm(q, weights.norms[0]), cos, sin)
    k = rotated(rms_norm(k, weights.norms[1]), cos, sin)
    joined = torch.cat([attention(q, k, v, mask), F.gelu(y[..., 3 * d :], approximate="tanh")], -1)
    return (_bounded(x + gate * adapted(joined, weights.leave, factors[1], (d,), valued)),)


def double_block_again(*arguments: Any) -> tuple[Tensor, Tensor]:
    """`double_block` where it is computed again for its backward pass; all arguments are given."""
    return double_block(*arguments, valued=False)


def single_block_again(*arguments: Any) -> tuple[Tensor]:
    """`single_block` likewise."""
    return single_block(*arguments, valued=False)


def modulation(weights: tuple[Linear, ...], factors: tuple[Any, ...], silu: Tensor) -> tuple[Tensor]:
    """(B, n, D): all shifts, scales and gates of one block, from silu of the time embedding (B, D)."""
    parts = [
        adapted(silu, linear, factor, (linear.weight.shape[0],))
        for linear, factor in zip(weights, factors, strict=True)
    ]
    return (torch.cat(parts, -1).unflatten(-1, (-1, silu.shape[-1])),)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Over the last axis, in fp32, then times the weight."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype) * weight.to(x.dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on neighbouring pairs of x (B, S, heads, width), in fp32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]  # (S, 1, width / 2)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2).to(x.dtype)


def _normed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


def _heads(x: Tensor, linear: Linear, factors: Any, cos: Tensor) -> list[Tensor]:
    """q, k and v (B, tokens, heads, width)."""
    d, width = x.shape[-1], 2 * cos.shape[-1]
    return [part.unflatten(-1, (-1, width)) for part in adapted(x, linear, factors, (d, d, d)).chunk(3, -1)]


def _mixed(x: Tensor, attended: Tensor, weights: Side, factors: Side, m: Any, valued: bool) -> Tensor:
    """One stream after attention and MLP. m: gate of attention; shift, scale and gate of the MLP."""
    d = x.shape[-1]
    gate, mlp_shift, mlp_scale, mlp_gate = m
    x = x + gate * adapted(attended, weights.out, factors.out, (d,))
    y = adapted(_normed(x, mlp_shift, mlp_scale), weights.up, factors.up, (weights.up.weight.shape[0],))
    y = adapted(F.gelu(y, approximate="tanh"), weights.down, factors.down, (d,), valued)
    return _bounded(x + mlp_gate * y)


def _needed(valued: bool, x: Tensor, modulation: Tensor) -> bool:
    """Whether the gradient asks for the last products' values: that of a gate does, and that of a bound."""
    return valued or modulation.requires_grad or x.dtype == torch.float16


def _bounded(x: Tensor) -> Tensor:
    return x.clamp(-LIMIT, LIMIT) if x.dtype == torch.float16 else x
