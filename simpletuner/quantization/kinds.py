"""The kinds of quantised weights, without torch: what each is kept in, and what it needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

GROUP = 128  # weights of a row that share a scale and a shift
BLOCK, NESTED = 64, 256  # of nf4: weights that share a scale, and scales that share one
BF16_CARDS = (8, 0)  # compute capability from which there is bf16
OURS = "ours"


@dataclass(frozen=True)
class Kind:
    """One way to keep a matrix. `weight` names the tuple of `kernels.weights` that it becomes."""

    name: str
    library: str  # the extra that brings its quantiser, or OURS
    weight: str
    bits: int  # of one code
    capability: tuple[int, int] = (0, 0)  # least compute capability of an NVIDIA card
    cuda: bool = False  # wants CUDA; on the CPU it is slow
    diffusers: bool = True  # can be made by diffusers itself, and be taken over from it
    own: bool = False  # made by our own code in the library's way; the library itself is for quantize_via=pipeline
    compute: bool = False  # multiplied in 8 bits as well, hence for training only

    @property
    def num_bytes(self) -> float:
        """Of one weight, with its share of scales."""
        shared = {"Groups": 2 * 2 / GROUP, "Nf4": 1 / BLOCK + 8 / (BLOCK * NESTED)}
        return self.bits / 8 + shared.get(self.weight, 0.0)

    @property
    def multiple(self) -> int:
        """What the inputs of a layer must be a multiple of; layers that are none stay as they are."""
        return {"Groups": GROUP, "Nf4": 2}.get(self.weight, 1)


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("int8-quanto", "quanto", "Rows", 8, own=True),
        Kind("int4-quanto", "quanto", "Groups", 4, BF16_CARDS, own=True),
        Kind("int2-quanto", "quanto", "Groups", 2, own=True),
        Kind("fp8-quanto", "quanto", "Rows", 8, own=True),
        Kind("int8-torchao", "torchao", "Rows", 8),
        Kind("int4-torchao", "torchao", "Groups", 4, BF16_CARDS, diffusers=False),  # its layout is that of one kernel
        Kind("fp8-torchao", "torchao", "Rows", 8, (8, 9)),
        Kind("nf4-bnb", "bitsandbytes", "Nf4", 4, cuda=True),
        Kind("int8-bnb", "bitsandbytes", "Rows", 8, cuda=True),
        Kind("fp8-compute", OURS, "Compute8", 8, (8, 9), diffusers=False, compute=True),
        Kind("int8-compute", OURS, "Compute8", 8, (8, 0), diffusers=False, compute=True),
    )
}


def packed(kind: Kind, path: str, inputs: int, keep: Iterable[str]) -> bool:
    """Whether the linear layer at `path` is quantised: no pattern keeps it precise, and its inputs fit the kind."""
    return inputs % kind.multiple == 0 and not any(fnmatchcase(path, pattern) for pattern in keep)
