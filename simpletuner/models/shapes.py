"""The sizes of a model, known without its weights: what estimates and checks of names are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Stack:
    """The blocks of one kind, in the order of the model.

    A unit is one activation of `Shapes.width` numbers for every token, 2 bytes a number.
    """

    name: str  # the list that holds the blocks
    count: int
    reads: Mapping[str, str]  # linear layer within the block -> the tensor that it reads
    units: Mapping[str, float]  # tensor -> units that are kept for the gradient where a trained layer reads it
    kept: float  # units that the other operations keep, whatever is trained
    entering: float = 1.0  # units of the block's inputs: all that is kept if the block is recomputed


@dataclass(frozen=True)
class Shapes:
    """A transformer's linear layers, how its blocks use memory, and the sizes of the parts beside it."""

    layers: Mapping[str, tuple[int, int]]  # module path -> (out, in), in the order of the model
    others: int  # numbers outside the matrices of linear layers: biases and norms
    width: int
    stacks: tuple[Stack, ...]
    text_tokens: int
    pixels_per_token: int  # along an edge
    text_encoders: tuple[tuple[int, int], ...]  # of each: weights in linear layers, and those in the rest
    vae: int  # weights
    vae_channels: int  # at full size, inside the VAE
    token_channels: int  # numbers of the latent in one image token
    text_widths: tuple[int, int]  # numbers kept of a caption: for each token, and once

    @property
    def num_weights(self) -> int:
        return sum(out * into for out, into in self.layers.values()) + self.others

    @property
    def encoders(self) -> int:
        """Weights of the text encoders together."""
        return sum(map(sum, self.text_encoders))

    @property
    def num_blocks(self) -> int:
        return sum(stack.count for stack in self.stacks)

    def block_paths(self) -> list[str]:
        """The modules of the blocks, in the order in which they run."""
        return [f"{stack.name}.{index}" for stack in self.stacks for index in range(stack.count)]

    def block_weights(self) -> list[int]:
        """Numbers in the matrices of each block, in that order."""
        found = dict.fromkeys(self.block_paths(), 0)
        for path, (out, into) in self.layers.items():
            block = ".".join(path.split(".")[:2])
            if block in found:
                found[block] += out * into
        return list(found.values())

    def latent_bytes(self, height: int, width: int) -> int:
        """Of the stored latent of a picture of that size in pixels, in 16 bits."""
        return 2 * self.token_channels * (height // self.pixels_per_token) * (width // self.pixels_per_token)

    @property
    def text_bytes(self) -> int:
        """Of one caption's stored embeddings, in 16 bits, with a byte of mask for each token."""
        each, once = self.text_widths
        return self.text_tokens * (2 * each + 1) + 2 * once

    def tokens(self, height: int, width: int) -> int:
        """Text and image tokens of a picture of that size in pixels."""
        return self.text_tokens + (height // self.pixels_per_token) * (width // self.pixels_per_token)
