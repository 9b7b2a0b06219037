"""Small blocks with the shapes of a real model: two kinds, weights as trees, factors that are trained."""

from __future__ import annotations

from typing import NamedTuple

import torch

WIDTH, TOKENS, TEXT = 8, 6, 3


class Packed(NamedTuple):
    """A weight that is more than one tensor, and a number."""

    codes: torch.Tensor  # int8
    scale: torch.Tensor
    bits: int

    @property
    def matrix(self):
        return self.codes.float() * self.scale[:, None] * (self.bits / 8)


class Block:
    """One block as `protocols.Block` says; `rehomed` counts how often its weights were given another place."""

    def __init__(self, index, kind, function, weights, factors):
        self.index, self.kind, self.function, self.weights = index, kind, function, weights
        self._factors, self.rehomed = factors, 0

    @property
    def again(self):
        return self.function

    def factors(self):
        return self._factors

    def rehome(self, weights):
        self.weights = weights
        self.rehomed += 1


def _adapted(x, matrix, factors):
    y = x @ matrix.T
    if factors["a"] is not None:
        y = y + (x @ factors["a"].T @ factors["b"].T) * factors["scale"]
    return y


def double(weights, factors, image, text, table, shift):
    """Two streams that read each other; `shift` may be None."""
    joined = torch.cat([text, image], 1)
    mixed = torch.tanh(_adapted(joined, weights["joined"].matrix, factors["joined"]) * table)
    image = image + mixed[:, TEXT:] * weights["gain"] + (0 if shift is None else shift)
    return image, text + _adapted(mixed[:, :TEXT], weights["text"], factors["text"])


def single(weights, factors, x, table, shift):
    y = torch.sin(_adapted(x * table, weights["all"].matrix, factors["all"]))
    return (x + y + (0 if shift is None else shift),)


def _factor(generator, trained=True):
    if not trained:
        return {"a": None, "b": None, "scale": 1.0}
    a, b = (torch.randn(shape, generator=generator) / 4 for shape in ((2, WIDTH), (WIDTH, 2)))
    return {"a": a.requires_grad_(), "b": b.requires_grad_(), "scale": 0.5}


def model(doubles=3, singles=4, trained=None, device="cpu"):
    """Blocks in order. trained: the indices of those with factors, by default all."""
    generator = torch.Generator().manual_seed(3)

    def packed():
        codes = torch.randint(-100, 100, (WIDTH, WIDTH), generator=generator, dtype=torch.int8)
        return Packed(codes, torch.rand(WIDTH, generator=generator) / 200, 8)

    blocks = []
    for index in range(doubles + singles):
        learns = trained is None or index in trained
        if index < doubles:
            weights = {"joined": packed(), "gain": torch.rand(WIDTH, generator=generator),
                       "text": torch.randn(WIDTH, WIDTH, generator=generator) / 4}  # fmt: skip
            factors = {"joined": _factor(generator, learns), "text": _factor(generator, learns)}
            kind, function = "double", double
        else:
            weights, factors = {"all": packed()}, {"all": _factor(generator, learns)}
            kind, function = "single", single
        move = lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf  # noqa: E731
        weights = torch.utils._pytree.tree_map(move, weights)
        factors = torch.utils._pytree.tree_map(
            lambda leaf: leaf.detach().to(device).requires_grad_() if isinstance(leaf, torch.Tensor) else leaf, factors
        )
        blocks.append(Block(index, kind, function, weights, factors))
    return blocks


def inputs(device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(1, tokens, WIDTH, generator=generator).to(device) for tokens in (TOKENS, TEXT))
    return image, text, torch.rand(1, 1, WIDTH, generator=generator).to(device)


def forward(blocks, runner, image, text, table, shift=None):
    doubles = [block for block in blocks if block.kind == "double"]
    for block in doubles:
        image, text = runner(block, (image, text), (table, shift))
    x = torch.cat([text, image], 1)
    for block in blocks[len(doubles) :]:
        (x,) = runner(block, (x,), (table, None if shift is None else shift))
    return x


def plain(block, tensors, fixed):
    """A runner that only calls."""
    return block.function(block.weights, block.factors(), *tensors, *fixed)


def fail(block, *times):
    """Makes the block run out of memory at those of its calls, counted from 1."""
    sound, calls = block.function, 0

    def broken(*arguments):
        nonlocal calls
        calls += 1
        if calls in times:
            raise torch.OutOfMemoryError("full")
        return sound(*arguments)

    block.function = broken


def trained(blocks):
    leaves = [leaf for block in blocks for leaf in torch.utils._pytree.tree_leaves(block.factors())]
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def step(blocks, runner, *tensors, **more):
    """(output, gradients of all that is trained) of one forward and backward pass."""
    for leaf in trained(blocks):
        leaf.grad = None
    output = forward(blocks, runner, *tensors, **more)
    output.square().mean().backward()
    return output.detach(), [leaf.grad for leaf in trained(blocks)]


def same(gradients, wanted):
    """To the bit; where one has no gradient, neither has the other."""
    assert any(gradient is not None for gradient in wanted)
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(gradients, wanted, strict=True)
    )


def equal(one, other):
    """Outputs and gradients, as `step` gives them."""
    return torch.equal(one[0], other[0]) and same(one[1], other[1])
