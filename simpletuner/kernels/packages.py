"""Packages that a choice of kernel needs, without torch: rules ask whether they are there before anything is loaded."""

from __future__ import annotations

from typing import NamedTuple


class Package(NamedTuple):
    module: str
    install: str  # the line that installs it


ATTENTION = {
    "xformers": Package("xformers", "pip install xformers"),
    "flash-attn-2": Package("flash_attn", "pip install flash-attn --no-build-isolation"),
    "flash-attn-3": Package("flash_attn_interface", "build it from the folder hopper of flash-attention's source"),
}
SAGE = Package("sageattention", "pip install sageattention")  # without it a run goes on
