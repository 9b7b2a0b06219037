"""Attention kernels behind one signature: q, k, v (B, S, heads, width) and a mask -> (B, S, heads x width).

mask: None, or boolean (True may be seen) or a bias, broadcast to (B, heads, S, S).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simpletuner.errors import ConfigError, HardwareError, Problem, SimpleTunerError, first_line
from simpletuner.kernels.packages import ATTENTION, SAGE

Attention = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's own choice of kernel: the plain twin of all others."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class _Cudnn(torch.autograd.Function):
    """NVIDIA's kernel. Called directly, so that what its backward pass is given is laid out as its forward pass was.

    Through PyTorch's dispatch the gradient may arrive in another layout, and its backward then reads out of bounds
    (torch 2.11, cuDNN 9.19, H100).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse, _, _, num_q, num_k, seed, offset, _ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, False, False
        )
        ctx.save_for_backward(q, k, v, out, lse, seed, offset)
        ctx.lengths = num_q, num_k
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        q, k, v, out, lse, seed, offset = ctx.saved_tensors
        num_q, num_k = ctx.lengths
        grad = grad.transpose(1, 2).contiguous().transpose(1, 2)
        return torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            grad, q, k, v, out, lse, seed, offset, None, None, None, num_q, num_k, 0.0, False
        )


def cudnn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """NVIDIA's kernel; a mask is left to PyTorch's choice."""
    if mask is not None:
        return sdpa(q, k, v, mask)
    q, k, v = (x.contiguous().transpose(1, 2) for x in (q, k, v))
    return _Cudnn.apply(q, k, v).transpose(1, 2).flatten(2)


def flash_2(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The flash-attn package; a mask is left to PyTorch's choice."""
    if mask is not None:
        return sdpa(q, k, v, mask)
    from flash_attn import flash_attn_func  # type: ignore[import-not-found]

    return flash_attn_func(q, k, v, deterministic=torch.are_deterministic_algorithms_enabled()).flatten(2)


def flash_3(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The flash-attn package's kernels for Hopper; a mask is left to PyTorch's choice."""
    if mask is not None:
        return sdpa(q, k, v, mask)
    from flash_attn_interface import flash_attn_func  # type: ignore[import-not-found]

    out = flash_attn_func(q, k, v, deterministic=torch.are_deterministic_algorithms_enabled())
    return (out[0] if isinstance(out, tuple) else out).flatten(2)  # older ones give the log-sum-exp as well


def xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Memory-efficient attention of the xformers package; a boolean mask becomes a bias."""
    from xformers.ops import memory_efficient_attention  # type: ignore[import-not-found]

    return memory_efficient_attention(q, k, v, attn_bias=None if mask is None else _bias(mask, q, k)).flatten(2)


def _bias(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """(B, heads, S, S) in q's dtype, a view of rows that begin at multiples of eight numbers, as its kernels want."""
    length = k.shape[1]
    bias = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], -(-length // 8) * 8)[..., :length]
    return bias.masked_fill_(~mask, float("-inf")) if mask.dtype == torch.bool else bias.copy_(mask)


def flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's FlexAttention, compiled where it is called from plain code too: otherwise it keeps all scores."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = _flex()(q, k, v, score_mod=None if mask is None else _scored(mask, q))
    return out.transpose(1, 2).flatten(2)


@functools.cache
def _flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _scored(mask: Tensor, q: Tensor) -> Callable[..., Tensor]:
    full = mask.expand(q.shape[0], q.shape[1], q.shape[2], mask.shape[-1])

    def score(value: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = full[b, h, i, j]
        return torch.where(seen, value, float("-inf")) if full.dtype == torch.bool else value + seen

    return score


def sage(name: str, device: torch.device) -> Attention:
    """8-bit attention of the sageattention package. It has no gradient; a mask is left to PyTorch's choice.

    ImportError if there is no such package, or not with this kernel.
    """
    wanted = SAGE_KERNELS[name]
    if wanted.endswith("fp8_cuda") and device.type == "cuda" and torch.cuda.get_device_capability(device) == HOPPER:
        wanted += "_sm90"  # these cards have a kernel of their own
    function = getattr(importlib.import_module(SAGE.module), wanted, None)
    if function is None:
        raise ImportError(f"the {SAGE.module} that is installed has no {wanted}")

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return sdpa(q, k, v, mask) if mask is not None else function(q, k, v, tensor_layout="NHD").flatten(2)

    return attention


class Switch:
    """One kernel for training, and another one within `sampling`.

    Whether gradients are on would not tell: a recomputed block runs without them first.
    """

    def __init__(self, training: Attention, sampling: Attention):
        self._training, self._sampling = training, sampling
        self.samples = False

    @contextmanager
    def sampling(self) -> Iterator[None]:
        before, self.samples = self.samples, True
        try:
            yield
        finally:
            self.samples = before

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return (self._sampling if self.samples else self._training)(q, k, v, mask)


class Chosen(NamedTuple):
    """The kernel of training, that of sampling, and how a line about the run calls them."""

    name: str
    training: Attention
    sampling: Attention
    notice: str = ""  # why sampling has not the kernel that was asked for


KERNELS: dict[str, Attention] = {
    "diffusers": sdpa,
    "cudnn": cudnn,
    "flash-attn-2": flash_2,
    "flash-attn-3": flash_3,
    "xformers": xformers,
    "flex": flex,
}
SAGE_KERNELS = {  # name -> function of the package
    "sageattention": "sageattn",  # its own choice among the others
    "sageattention-int8-fp16-triton": "sageattn_qk_int8_pv_fp16_triton",
    "sageattention-int8-fp16-cuda": "sageattn_qk_int8_pv_fp16_cuda",
    "sageattention-int8-fp8-cuda": "sageattn_qk_int8_pv_fp8_cuda",
}
HOPPER = (9, 0)  # from here on cuDNN's kernel is the fastest of PyTorch's
TOLERANCE = 0.05  # relative; bf16 loses 0.004
TOLERANCE_8 = 0.15  # of 8-bit kernels, on random numbers


def choose(name: str, device: torch.device, dtype: torch.dtype) -> Chosen:
    """The kernel of that name, tried on one small call, forward and backward.

    `diffusers` is PyTorch's choice, or cuDNN's kernel where that is the fastest and computes the same. ConfigError
    with the install line if a package is missing, HardwareError if the kernel fails here. SageAttention is for
    sampling; where it fails, sampling has the kernel of training and `notice` says why.
    """
    if name in SAGE_KERNELS:
        return _with_sage(choose("diffusers", device, dtype), name, device, dtype)
    if name == "diffusers":
        return _default(device, dtype)
    try:
        wrong = _difference(KERNELS[name], device, dtype)
    except ImportError as error:
        raise ConfigError(_problem(name, f": {first_line(error)}", ConfigError, ATTENTION[name].install)) from error
    except Exception as error:  # each package has its own
        raise HardwareError(_problem(name, f" does not run here: {first_line(error)}", HardwareError)) from error
    if not wrong < TOLERANCE:
        raise HardwareError(_problem(name, f" computes something else here: {wrong:.0%} off", HardwareError))
    return Chosen(name, KERNELS[name], KERNELS[name])


def _default(device: torch.device, dtype: torch.dtype) -> Chosen:
    plain = Chosen("sdpa", sdpa, sdpa)
    if not _cudnn_is_best(device, dtype):
        return plain
    try:
        right = _difference(cudnn, device, dtype) < TOLERANCE
    except Exception as error:  # cuDNN has no plan for this card, or is switched off in this build
        return plain._replace(notice=f"attention by PyTorch's choice, not by cuDNN: {first_line(error)}")
    return Chosen("cudnn", cudnn, cudnn) if right else plain


def _with_sage(training: Chosen, name: str, device: torch.device, dtype: torch.dtype) -> Chosen:
    try:
        kernel = sage(name, device)
        wrong = _difference(kernel, device, dtype, gradients=False)
        reason = "" if wrong < TOLERANCE_8 else f"it computes something else here: {wrong:.0%} off"
    except ModuleNotFoundError as error:
        if error.name == SAGE.module:
            return training  # a rule has told
        reason = first_line(error)
    except Exception as error:  # as above
        reason = first_line(error)
    if reason:
        return training._replace(notice=f"samples use {training.name}, not {name}: {reason}")
    return training._replace(name=f"{training.name}, in samples {name}", sampling=kernel)


def _problem(name: str, said: str, kind: type[SimpleTunerError], fix: str = "attention_mechanism=diffusers") -> Problem:
    return Problem(f"attention_mechanism={name}{said}", kind.area, keys=("attention_mechanism",), fix=fix)


def _cudnn_is_best(device: torch.device, dtype: torch.dtype) -> bool:
    """Its gradients do not repeat to the bit, so not with deterministic kernels."""
    here = device.type == "cuda" and not torch.version.hip and not torch.are_deterministic_algorithms_enabled()
    return here and dtype in (torch.bfloat16, torch.float16) and torch.cuda.get_device_capability(device) >= HOPPER


def _difference(function: Attention, device: torch.device, dtype: torch.dtype, gradients: bool = True) -> float:
    """The relative distance of output and gradients from those of plain arithmetic in fp32."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 160, 2, 128)
    q, k, v, weight = (torch.randn(shape, generator=generator) for _ in range(4))
    found = []
    for kernel, precision, place in ((function, dtype, device), (sdpa, torch.float32, torch.device("cpu"))):
        inputs = tuple(x.to(place, precision).requires_grad_(gradients) for x in (q, k, v))
        out = kernel(inputs[0], inputs[1], inputs[2], None)
        results = [out]
        if gradients:
            results += torch.autograd.grad(out, inputs, weight.flatten(2).to(place, precision))
        found.append(torch.cat([x.detach().flatten().float().cpu() for x in results]))
    return float((found[0] - found[1]).norm() / found[1].norm())
