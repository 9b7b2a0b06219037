"""Weights that diffusers quantises while it loads a model (`quantize_via=pipeline`), taken over from its layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from simpletuner.errors import ConfigError, HardwareError
from simpletuner.quantization.kinds import BLOCK, KINDS
from simpletuner.quantization.quantize import BYTE_LEVELS, install_line, of_bitsandbytes, of_quanto, rows

OPTION = "quantization_config"
QUANTO = {"int8-quanto": "int8", "int4-quanto": "int4", "int2-quanto": "int2", "fp8-quanto": "float8"}


def made(
    open: Callable[[Any], nn.Module], kind: str, dtype: torch.dtype, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The packed weight of every linear layer that diffusers quantised, by its path. What it left plain is not there.

    open: loads the model with a configuration of diffusers; settings: further arguments of its class, or of torchao's.
    ConfigError for an argument that there is not, HardwareError where diffusers refuses to quantise.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that diffusers will drop quanto some day
        warnings.filterwarnings("ignore", "(Config )?Deprecation", UserWarning)  # torchao's, of what diffusers chooses
        try:
            configuration = _configuration(kind, dtype, dict(settings))
        except ModuleNotFoundError as error:
            raise ConfigError(f"{kind}: {error.name} is not installed", fix=install_line(KINDS[kind])) from error
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{OPTION}: {error}", fix=f"remove it from {OPTION}") from error
        try:
            return _taken(open(configuration))
        except (RuntimeError, ImportError) as error:
            message = f"quantize_via=pipeline: diffusers does not make {kind} here: {error}"
            raise HardwareError(message, fix="quantize_via=auto") from error


def _configuration(kind: str, dtype: torch.dtype, settings: dict[str, Any]) -> Any:
    import diffusers

    if kind in QUANTO:
        return diffusers.QuantoConfig(weights_dtype=QUANTO[kind], **settings)
    if kind == "nf4-bnb":
        four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        return diffusers.BitsAndBytesConfig(**{**four, "bnb_4bit_compute_dtype": dtype, **settings})
    if kind == "int8-bnb":
        return diffusers.BitsAndBytesConfig(**{"load_in_8bit": True, **settings})
    from torchao import quantization

    own = {"int8-torchao": "Int8WeightOnlyConfig", "fp8-torchao": "Float8WeightOnlyConfig"}[kind]
    left = settings.pop("modules_to_not_convert", None)
    arguments = {"set_inductor_config": False, **settings}
    return diffusers.TorchAoConfig(getattr(quantization, own)(**arguments), modules_to_not_convert=left)


def _taken(model: nn.Module) -> dict[str, Any]:
    found = {path: _weight(layer) for path, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    return {path: weight for path, weight in found.items() if weight is not None}


def _weight(layer: Any) -> Any:
    """ConfigError for a layout that none of our kinds has."""
    weight = layer.weight
    if hasattr(weight, "qtype"):
        return _of_quanto(weight)
    if hasattr(weight, "qdata") and weight.scale.numel() == weight.shape[0]:
        return rows(weight.qdata, weight.scale)
    if hasattr(weight, "tensor_impl") and weight.block_size == (1, weight.shape[1]):  # torchao before 0.18
        codes, scale, _ = weight.tensor_impl.get_plain()
        return rows(codes, scale)
    if (state := getattr(weight, "quant_state", None)) is not None:
        if (state.quant_type, state.blocksize, state.nested, weight.dtype) != ("nf4", BLOCK, True, torch.uint8):
            raise ConfigError(f"{OPTION}: only nf4 with double quantisation is taken over", fix=f"shorten {OPTION}")
        return of_bitsandbytes(weight.data, state, layer.out_features, layer.in_features)
    if getattr(weight, "SCB", None) is not None:
        return rows(weight.CB if weight.CB is not None else weight.data, weight.SCB * BYTE_LEVELS)
    if type(weight.data) is not torch.Tensor:
        raise ConfigError(f"{OPTION}: {type(weight.data).__name__} is not taken over", fix=f"shorten {OPTION}")
    return None


def _of_quanto(weight: Any) -> Any:
    """In the library's general layout, whichever that of its kernels for this device is."""
    from optimum.quanto import WeightQBitsTensor, WeightQBytesTensor

    if isinstance(weight, WeightQBytesTensor):
        return of_quanto(weight if type(weight) is WeightQBytesTensor else weight.weight_qbytes_tensor())
    return of_quanto(weight if type(weight) is WeightQBitsTensor else weight.weight_qbits_tensor())
