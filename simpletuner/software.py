"""What is installed here, read from the packages' metadata: nothing is imported."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (  # those that a report of a fault needs
    "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "huggingface_hub", "numpy", "pillow",
)  # fmt: skip
OPTIONAL = (
    "bitsandbytes", "lycoris-lora", "optimum-quanto", "pillow-heif", "pytorch-optimizer", "torchao", "torch-optimi",
    "triton", "wandb",
)  # fmt: skip


@dataclass(frozen=True)
class TorchBuild:
    """What torch was built for: the version of CUDA or HIP as people write it, or None."""

    version: str
    cuda: str | None
    hip: str | None

    @property
    def devices(self) -> str:
        return f"CUDA {self.cuda}" if self.cuda else f"ROCm {self.hip}" if self.hip else "no GPU"


@dataclass(frozen=True)
class Unmet:
    """A package that the program needs and that is missing or has the wrong version (`found`)."""

    requirement: str
    found: str | None


def versions(names: Iterable[str]) -> dict[str, str | None]:
    """Package -> installed version, None if it is not there."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def torch_build() -> TorchBuild | None:
    """None without torch. Read from torch/version.py, which only assigns constants."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return None
    facts: dict[str, Any] = {}
    for node in ast.parse((Path(spec.origin).parent / "version.py").read_text("utf-8")).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Constant):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            facts[ast.unparse(target)] = node.value.value
    return TorchBuild(facts.get("__version__") or "", facts.get("cuda"), facts.get("hip"))


def unmet(distribution: str = "simpletuner") -> list[Unmet]:
    """The requirements of an installed distribution, without its extras, that do not hold here."""
    from packaging.requirements import Requirement

    try:
        texts = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:  # run from a folder, without installing it: nothing says what it wants
        return []
    wanted = [Requirement(text) for text in texts]
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    installed = versions(r.name for r in wanted)
    return [
        Unmet(f"{r.name}{r.specifier}", installed[r.name])
        for r in wanted
        if installed[r.name] is None or not r.specifier.contains(installed[r.name] or "", prereleases=True)
    ]
