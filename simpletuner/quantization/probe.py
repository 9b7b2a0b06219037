"""Whether a kind of quantised weights works here: one tiny layer is packed, run forward and backward."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from simpletuner.errors import ConfigError, HardwareError, Problem, first_line
from simpletuner.quantization.kinds import KINDS
from simpletuner.quantization.linear import PackedLinear
from simpletuner.quantization.quantize import quantise

WIDTH, ROWS, TOKENS = 256, 64, 32  # of the layer: whole groups, and enough rows for the 8-bit products
FARTHEST = 0.7  # relative error of two bits on random numbers is 0.5; a broken kernel is far from both


def failure(kind: str, device: torch.device) -> str:
    """What goes wrong with the kind on this device; empty if it works. Waits for the device."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(ROWS, WIDTH, generator=generator).to(device, dtype)
    x = torch.randn(TOKENS, WIDTH, generator=generator).to(device, dtype).requires_grad_(True)
    try:
        y = PackedLinear(quantise(kind, w))(x)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        wrong = [_distance(y.detach(), x.detach() @ w.T), _distance(dx, torch.ones_like(y) @ w)]  # sync point
    except ConfigError:  # a library that is missing
        raise
    except Exception as error:  # noqa: BLE001 - whatever a library or a driver raises: the kind does not work here
        return f"{type(error).__name__}: {first_line(error)}"
    return "" if max(wrong) < FARTHEST else f"its results are wrong by {max(wrong):.0%}"


def _distance(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.float() - right.float()).norm() / right.float().norm())


def working(device: torch.device, compute: bool) -> list[str]:
    """The kinds whose library is here and that work on this device; compute: those for training only as well."""
    found = []
    for kind in KINDS.values():
        try:
            works = (compute or not kind.compute) and not failure(kind.name, device)
        except ConfigError:
            continue
        found += [kind.name] if works else []
    return found


def check(asked: Mapping[str, str], device: torch.device) -> None:
    """asked: option -> kind. HardwareError names the options whose kind fails, why, and the kinds that work here."""
    wrong = {option: why for option, kind in asked.items() if (why := failure(kind, device))}
    if not wrong:
        return
    problems = []
    for option, why in wrong.items():
        works = working(device, compute=option == "base_model_precision")
        fix = f"{option}={', '.join(works[:-1])} or {works[-1]}" if len(works) > 1 else f"{option}=no_change"
        message = f"{option}={asked[option]} does not work on this {_device_name(device)}: {why}"
        problems.append(Problem(message, "hardware", keys=(option,), fix=fix))
    raise HardwareError(problems)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
