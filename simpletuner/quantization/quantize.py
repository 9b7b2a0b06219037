"""A matrix becomes a packed weight, as the library of its kind makes it, in the plain tensors of `kernels.weights`.

Libraries are imported here, when one of their kinds is used. `of_quanto` and `of_bitsandbytes` also take what those
libraries made elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from simpletuner.errors import ConfigError
from simpletuner.kernels.weights import Compute8, Groups, Nf4, Rows
from simpletuner.quantization.kinds import GROUP, KINDS, OURS, Kind

INT8_MAX = 127
BYTE_LEVELS = 1 / INT8_MAX  # of a row's largest value, as bitsandbytes counts


@torch.no_grad()
def quantise(kind: str, weight: Tensor) -> Any:
    """The packed form of `weight` (out, in), a floating matrix, on its device.

    The inputs must be a multiple of what the kind says. ConfigError with the install line if its library is missing.
    """
    known = KINDS[kind]
    assert weight.ndim == 2 and weight.shape[1] % known.multiple == 0, f"{kind} does not take {tuple(weight.shape)}"
    try:
        return QUANTISERS[kind](weight)
    except ModuleNotFoundError as error:
        if known.library == OURS:
            raise
        message = f"{kind} is made by {known.library}: {error.name} is not installed"
        raise ConfigError(message, fix=install_line(known)) from error


def install_line(kind: Kind) -> str:
    return f"pip install 'simpletuner[{kind.library}]'"


def rows(codes: Tensor, scale: Tensor) -> Rows:
    """8-bit codes (out, in) and one scale a row, of any shape. A row of zeros has none, and libraries divide by it."""
    scale = scale.reshape(-1).float()
    codes.view(torch.uint8)[scale == 0] = 0
    return Rows(codes.contiguous(), scale)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes below 2**bits, in the order of the weights -> bytes; the first of each byte lies in its low bits."""
    per_byte = 8 // bits
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    return (codes.reshape(-1, per_byte) << shifts).sum(dim=1, dtype=torch.uint8)


# ---- as optimum-quanto does it, whose import alone takes longer than packing the whole of Flux


def _largest(dtype: torch.dtype) -> Callable[[Tensor], Rows]:
    """w = code x scale with scale = largest / top, for each row."""

    def made(weight: Tensor) -> Rows:
        limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
        scale = weight.abs().amax(dim=1, keepdim=True) / limits.max
        codes = weight / scale
        codes = codes if dtype.is_floating_point else codes.round_()
        return rows(codes.clamp_(limits.min, limits.max).to(dtype), scale)

    return made


def _range(bits: int) -> Callable[[Tensor], Groups]:
    """w = code x scale + least, where the codes of a group span its range."""

    def made(weight: Tensor) -> Groups:
        most, grouped = 2**bits - 1, weight.reshape(-1, GROUP)
        least, largest = grouped.aminmax(dim=1, keepdim=True)
        scale = (largest - least) / most
        scale = torch.where(scale == 0, 1, scale)  # a group of one value is its shift alone
        codes = ((grouped - least) / scale).round_().clamp_(0, most).to(torch.uint8)
        return Groups(pack(codes, bits), scale.reshape(-1), least.reshape(-1), *weight.shape)

    return made


def of_quanto(tensor: Any) -> Any:
    """A weight tensor of the library in its general layout, whole rows or groups of GROUP along them."""
    if tensor.qtype.bits == 8:
        return rows(tensor._data, tensor._scale.expand(tensor.shape[0], 1))
    codes = _unpacked(tensor._data)  # (groups, GROUP), row after row
    scale, shift = tensor._scale.reshape(-1), tensor._shift.reshape(-1)
    return Groups(pack(codes, tensor.qtype.bits), scale.contiguous(), -shift, *tensor.shape)


def _unpacked(packed: Any) -> Tensor:
    """The codes of a packed tensor of the library, whose own way would compile an extension first: a minute."""
    bits, parts = packed._bits, packed._data  # the first rows lie in the low bits
    codes = torch.cat([(parts >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])
    return codes[: packed.shape[0]]


# ---- torchao


def _torchao_int8(weight: Tensor) -> Rows:
    from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

    block, tiny = (1, weight.shape[1]), torch.finfo(torch.float32).eps
    scale, zero = choose_qparams_affine(
        weight, MappingType.SYMMETRIC, block, torch.int8, eps=tiny, scale_dtype=torch.float32
    )
    return rows(quantize_affine(weight, block, scale, zero, torch.int8), scale)


def _torchao_fp8(weight: Tensor) -> Rows:
    from torchao.quantization import Float8Tensor, PerRow

    made: Any = Float8Tensor.from_hp(weight, granularity=PerRow())
    return rows(made.qdata, made.scale)


def _torchao_int4(weight: Tensor) -> Groups:
    """The library counts from the middle of a group: w = (code - 8) x scale + zero."""
    from torchao.quantization import utils

    scale, zero = utils.get_groupwise_affine_qparams(weight, 4, GROUP, weight.dtype)  # (out, groups in a row)
    codes = utils.groupwise_affine_quantize_tensor_from_qparams(weight, scale, zero, 4, GROUP)
    if codes.dtype == torch.uint8:  # on a GPU, two in a byte, the first in its high bits
        codes = torch.stack((codes >> 4, codes & 15), dim=-1)
    shift = (zero.float() - 8 * scale.float()).to(scale.dtype)
    return Groups(pack(codes.to(torch.uint8), 4), scale.reshape(-1), shift.reshape(-1), *weight.shape)


# ---- bitsandbytes


def _bitsandbytes_nf4(weight: Tensor) -> Nf4:
    from bitsandbytes import functional

    made = functional.quantize_4bit(weight.contiguous(), compress_statistics=True, quant_type="nf4")
    return of_bitsandbytes(*made, *weight.shape)


def of_bitsandbytes(codes: Tensor, state: Any, num_rows: int, num_columns: int) -> Nf4:
    """The library's packed bytes and their state, made as nf4 with blocks of 64 and compressed statistics."""
    scale = state.state2.absmax.float()
    offset = torch.ones_like(scale) * state.offset
    return Nf4(codes.reshape(-1), state.absmax, scale, offset, num_rows, num_columns)


def _bitsandbytes_int8(weight: Tensor) -> Rows:
    from bitsandbytes import functional

    codes, largest, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))  # its kernel takes nothing else
    return rows(codes, largest * BYTE_LEVELS)


# ---- ours


def _compute(dtype: torch.dtype, top: float) -> Callable[[Tensor], Compute8]:
    """w = code x scale with scale = largest / top, for each row."""

    def made(weight: Tensor) -> Compute8:
        scale = weight.abs().amax(dim=1).float() / top
        codes = weight.to(torch.float32, copy=True).div_(torch.where(scale == 0, 1, scale)[:, None])
        codes = codes if dtype.is_floating_point else codes.round_()
        return Compute8(codes.clamp_(-top, top).to(dtype), scale)

    return made


QUANTISERS: Mapping[str, Callable[[Tensor], Any]] = {
    "int8-quanto": _largest(torch.int8),
    "int4-quanto": _range(4),
    "int2-quanto": _range(2),
    "fp8-quanto": _largest(torch.float8_e4m3fn),
    "int8-torchao": _torchao_int8,
    "int4-torchao": _torchao_int4,
    "fp8-torchao": _torchao_fp8,
    "nf4-bnb": _bitsandbytes_nf4,
    "int8-bnb": _bitsandbytes_int8,
    "fp8-compute": _compute(torch.float8_e4m3fn, torch.finfo(torch.float8_e4m3fn).max),
    "int8-compute": _compute(torch.int8, INT8_MAX),
}
