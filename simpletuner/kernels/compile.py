"""Functions that are compiled once and shared by all blocks of a kind, and plain until they are wanted fast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]


class Compiled:
    """`function`, compiled inside `active()` and plain elsewhere. settings: arguments of torch.compile.

    Sampling stays outside: it has other shapes, and each would be compiled for a few pictures. If compiling fails and
    `strict` is not set, the function stays plain and `failure` says why.
    """

    def __init__(self, function: Function, *, strict: bool, **settings: Any):
        self.function, self.strict = function, strict
        self.failure = ""
        self.on = False
        self._fast: Function = torch.compile(function, **settings)

    @contextmanager
    def active(self) -> Iterator[None]:
        self.on = not self.failure
        try:
            yield
        finally:
            self.on = False

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        if not self.on:
            return self.function(*arguments)
        try:
            return self._fast(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler has many of its own, under no common name
            if self.strict:
                raise
            self.failure, self.on = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}", False
            return self.function(*arguments)


def prepare(num_shapes: int, memory_budget: float) -> None:
    """Lets the compiler make as many variants of one function as there are shapes, with and without gradients.

    memory_budget: share of the activations that its own choice would keep for the backward pass; see
    `torch._functorch.config.activation_memory_budget`. For the whole process.
    """
    import torch._dynamo
    import torch._functorch.config

    torch._functorch.config.activation_memory_budget = memory_budget

    limit = 2 * num_shapes + 8
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)  # type: ignore[attr-defined]
