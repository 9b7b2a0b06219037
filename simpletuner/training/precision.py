"""Where and how precisely to compute: device, autocast, loss scaling, and PyTorch's own switches."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from simpletuner.errors import HardwareError
from simpletuner.training.options import Speed

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "no": torch.float32}


def choose_device() -> torch.device:
    """CUDA (also ROCm) if there is one, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def prepare(speed: Speed, deterministic: bool) -> None:
    """Sets threads, TF32 and deterministic kernels for this process. Call it before the first CUDA work."""
    torch.set_num_threads(speed.torch_num_threads or min(8, os.cpu_count() or 1))
    torch.set_float32_matmul_precision("highest" if speed.disable_tf32 else "high")
    torch.backends.cudnn.allow_tf32 = not speed.disable_tf32
    # Its backward reads out of bounds on some shapes (torch 2.11, cuDNN 9.19, H100); flash attention is the next best.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with a fixed workspace
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)


class Precision:
    """The precision of activations on one device, and the loss scaling that fp16 needs."""

    def __init__(self, mixed_precision: Literal["bf16", "fp16", "no"], device: torch.device):
        self.device, self.dtype = device, DTYPES[mixed_precision]
        if self.dtype == torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise HardwareError(
                f"{torch.cuda.get_device_name(device)} cannot compute in bf16",
                fix="use mixed_precision=fp16 with optimizer=torch-adamw, or mixed_precision=no",
            )
        self.scaler = torch.amp.GradScaler(device.type) if self.dtype == torch.float16 else None

    def autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def state(self) -> dict[str, Any]:
        """The loss scale and its history; empty without one."""
        return self.scaler.state_dict() if self.scaler else {}

    def load_state(self, state: dict[str, Any]) -> None:
        if self.scaler and state:
            self.scaler.load_state_dict(state)
