"""Linear layers of FLUX.1 at their true sizes, without a model: other programs' readers know no smaller ones."""

from __future__ import annotations

import torch

from simpletuner.adapters import spelling
from simpletuner.adapters.formats import FORMATS
from simpletuner.adapters.names import DOUBLE, SINGLE

D = 3072
SIZES = {  # (out, in) of those that are not square
    "ff.net.0.proj": (4 * D, D), "ff.net.2": (D, 4 * D), "ff_context.net.0.proj": (4 * D, D),
    "ff_context.net.2": (D, 4 * D), "norm1.linear": (6 * D, D), "norm1_context.linear": (6 * D, D),
    "proj_mlp": (4 * D, D), "proj_out": (D, 5 * D), "norm.linear": (3 * D, D),
}  # fmt: skip
BLOCKS = {f"transformer_blocks.4.{name}": SIZES.get(name, (D, D)) for name in DOUBLE}
BLOCKS |= {f"single_transformer_blocks.17.{name}": SIZES.get(name, (D, D)) for name in SINGLE}
OUTSIDE = {"x_embedder": (D, 64), "context_embedder": (D, 4096), "norm_out.linear": (2 * D, D), "proj_out": (64, D)}


def pairs(layers=None, rank=2, scale=1.0):
    """Layer -> A and B, random, as a folded LoRA has them."""
    numbers = torch.Generator().manual_seed(4)
    sizes = BLOCKS | OUTSIDE if layers is None else layers
    return {
        name: (torch.randn(rank, into, generator=numbers) * scale, torch.randn(out, rank, generator=numbers))
        for name, (out, into) in sizes.items()
    }


def spelled(found, format="diffusers", metadata=None):
    """(tensors, metadata) of a file of that dialect."""
    dialect = FORMATS[format]
    tensors, rank = spelling.tensors(found, dialect)
    return tensors, spelling.head(tensors, dialect, rank, list(found), metadata or {}, "standard")
