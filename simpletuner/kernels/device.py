"""What a device can run, and its memory given back."""

from __future__ import annotations

import gc
import importlib.util
import os

import torch

TRITON = importlib.util.find_spec("triton") is not None


def runs_triton(device: torch.device) -> bool:
    """Whether kernels in Triton run there: on a GPU, or on the CPU in its interpreter (TRITON_INTERPRET=1)."""
    return TRITON and (device.type == "cuda" or (device.type == "cpu" and bool(os.environ.get("TRITON_INTERPRET"))))


def free() -> None:
    """Gives back what the caller no longer refers to, on the accelerator as well."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
