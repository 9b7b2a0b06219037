"""Host memory where weights wait: one piece for all, each tensor at its place, pinned where a GPU copies from it."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from simpletuner.errors import DiskError

ALIGNMENT = 512  # bytes: what the device's own allocator aligns to, and kernels may rely on


class Place(NamedTuple):
    """Where one tensor of a block lies within the block's bytes."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """How a block's weights, a pytree of tensors and plain values, lie in one run of bytes."""

    tree: TreeSpec
    leaves: tuple[Any, ...]  # a Place for each tensor; other leaves as they are
    num_bytes: int

    @classmethod
    def of(cls, weights: Any) -> Layout:
        flat, tree = tree_flatten(weights)
        leaves, end = [], 0
        for leaf in flat:
            if isinstance(leaf, Tensor):
                leaf = Place(end, leaf.shape, leaf.dtype)
                end += aligned(leaf.num_bytes)
            leaves.append(leaf)
        return cls(tree, tuple(leaves), end)

    def views(self, memory: Tensor) -> Any:
        """The weights as views of `memory`, uint8 of at least `num_bytes`; nothing is copied."""
        return tree_unflatten([self._view(leaf, memory) for leaf in self.leaves], self.tree)

    @staticmethod
    def _view(leaf: Any, memory: Tensor) -> Any:
        if not isinstance(leaf, Place):
            return leaf
        return memory[leaf.offset : leaf.offset + leaf.num_bytes].view(leaf.dtype).view(leaf.shape)


def aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def tensors(weights: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_flatten(weights)[0] if isinstance(leaf, Tensor))


class Arena:
    """`num_bytes` of host memory as a uint8 tensor, page-aligned: plain, pinned to the byte, or a file without a name.

    PyTorch's own pinned memory comes in powers of two; this is registered with CUDA as it is. A file vanishes with the
    process, however that ends. DiskError (exit 7) if the folder cannot take it.
    """

    def __init__(self, num_bytes: int, *, pin: bool = False, folder: Path | None = None):
        self.num_bytes, self.folder = num_bytes, folder
        self.pinned = False
        memory = self._mapped(max(num_bytes, 1), folder)
        if hasattr(mmap, "MADV_HUGEPAGE") and folder is None:
            with suppress(OSError):  # a kernel without them
                memory.madvise(mmap.MADV_HUGEPAGE)  # registering is quicker for fewer pages
        self.bytes = torch.frombuffer(memory, dtype=torch.uint8)[:num_bytes]
        self._release: weakref.finalize | None = None
        if pin and num_bytes and self._register():
            self.pinned = True

    @staticmethod
    def _mapped(num_bytes: int, folder: Path | None) -> mmap.mmap:
        if folder is None:
            return mmap.mmap(-1, num_bytes)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                # Space is taken now: to run out of it later would be a signal from the mapping, not an error.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, num_bytes)
                else:
                    file.truncate(num_bytes)
                return mmap.mmap(file.fileno(), num_bytes)
        except OSError as error:
            message = f"{folder}: {num_bytes / 1e9:.1f} GB of weights cannot be kept there: {error.strerror}"
            raise DiskError(message, fix="free some space, or give another group_offload_to_disk_path") from error

    def _register(self) -> bool:
        """Whether CUDA took the memory as pinned; a system may limit how much of it there is."""
        cudart: Any = torch.cuda.cudart()
        address = self.bytes.data_ptr()
        if int(cudart.cudaHostRegister(address, self.num_bytes, 0)) != 0:
            with contextlib.suppress(RuntimeError):  # CUDA would report it once more, with the next kernel
                torch.zeros(1, device="cuda").add_(1)
            return False
        self._release = weakref.finalize(self, cudart.cudaHostUnregister, address)
        return True

    def close(self) -> None:
        """Unpins the memory; views of it stay valid."""
        if self._release:
            self._release()
        self.pinned = False
