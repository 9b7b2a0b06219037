"""Tables on the device by which one launch works on many tensors: where each lies, and which block is whose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNED = 16  # bytes of an address, and numbers of a tensor, that let a kernel read whole vectors


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being recorded."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def upload(values: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """int64 tables of the values: (in pinned host memory, on the device). The host does not wait for the copy."""
    host = torch.tensor(values, dtype=torch.int64)
    if device.type != "cuda":
        return host, host
    host = host.pin_memory()
    return host, host.to(device, non_blocking=True)


class Addresses:
    """Where some tensors lie, as a table on the device that is written anew only if they moved."""

    def __init__(self, device: torch.device):
        self.device = device
        self.known: list[int] = []
        self.aligned = False  # to ALIGNED bytes, all of them
        self.table: Tensor | None = None
        self._recorded: list[tuple[Tensor, ...]] = []  # what CUDA graphs read again at each replay

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """(tensors,), int64. In a graph that is being recorded the table belongs to the graph and stays as it is."""
        now = [t.data_ptr() for t in tensors]
        recording = capturing(self.device)
        if now == self.known and self.table is not None:
            if recording:
                self._recorded.append((self.table,))
            return self.table
        host, table = upload(now, self.device)
        self.aligned = all(address % ALIGNED == 0 for address in now)
        if recording:  # it is filled at each replay, so what runs outside the graph must not count on it
            self._recorded.append((host, table))
            self.known, self.table = [], None
        else:
            self.known, self.table = now, table
        return table


class Blocks:
    """Many tensors cut into blocks of `length` numbers, none of which reaches into a second tensor."""

    def __init__(self, sizes: Sequence[int], length: int, device: torch.device):
        counts = torch.tensor([-(-size // length) for size in sizes])
        owners = torch.repeat_interleave(torch.arange(len(sizes)), counts)
        first = torch.cumsum(counts, 0) - counts
        self.count = len(owners)
        self.even = all(size % ALIGNED == 0 for size in sizes)
        self.sizes = torch.tensor(sizes, dtype=torch.int64).to(device)  # (tensors,), numbers
        self.owners = owners.int().to(device)  # (blocks,), which tensor
        self.indices = (torch.arange(self.count) - first[owners]).int().to(device)  # (blocks,), which of its blocks
