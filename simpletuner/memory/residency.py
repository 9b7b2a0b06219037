"""Where the weights of blocks are while they are not used, and how they come to where they are."""

from __future__ import annotations

from typing import Any, Protocol

from simpletuner.protocols import Block


class Residency(Protocol):
    """What a runner asks. Between a fetch and `done` the weights of a block are on the device and stay as they are."""

    @property
    def capturable(self) -> bool: ...  # whether a CUDA graph may contain the transfers
    def moves(self, block: Block) -> bool: ...  # whether it waits elsewhere, so that autograd may not keep its weights
    def fetch(self, block: Block) -> Any: ...  # its weights, where the device reads them, for a forward pass
    def fetch_again(self, block: Block) -> Any: ...  # the same, for the backward pass
    def done(self, block: Block, again: bool) -> None: ...  # again: the backward pass will fetch it once more
    def close(self) -> None: ...


class Resident:
    """Everything stays where it is."""

    capturable = True

    def moves(self, block: Block) -> bool:
        return False

    def fetch(self, block: Block) -> Any:
        return block.weights

    def fetch_again(self, block: Block) -> Any:
        return block.weights

    def done(self, block: Block, again: bool) -> None:
        pass

    def close(self) -> None:
        pass
