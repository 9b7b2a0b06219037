"""Functions that are compiled once and shared by all blocks of a kind, and plain until they are wanted fast."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from simpletuner.errors import HardwareError, first_line

Function = Callable[..., tuple[Tensor, ...]]


class Compiled:
    """`function`, compiled inside `active()` and plain elsewhere. settings: arguments of torch.compile.

    The compiler is not touched before the first such call: its import takes seconds. `before` is then called first.
    Sampling stays outside: it has other shapes, and each would be compiled for a few pictures. If compiling fails, that
    is a HardwareError with `strict`; without, the function stays plain and `failure` says why.
    """

    def __init__(
        self, function: Function, name: str, *, strict: bool, before: Callable[[], None] | None = None, **settings: Any
    ):
        self.function, self.name, self.strict = function, name, strict
        self.failure = ""
        self.on = False
        # The compiler keeps its graphs by code object. Partials have none of their own, and would share one limit.
        self._inner: Function = function.func if isinstance(function, partial) else function
        self._given: tuple[Any, ...] = function.args if isinstance(function, partial) else ()
        self._before, self._settings = before, settings
        self._fast: Function | None = None

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
        if self._fast is None:
            if self._before:
                self._before()
            self._fast = torch.compile(self._inner, **self._settings)
        try:
            return self._fast(*self._given, *arguments)
        except Exception as error:
            if not self.gives_up(error):
                raise
            return self.function(*arguments)

    def gives_up(self, error: Exception, what: str = "") -> bool:
        """Whether it is plain from now on because of that error. Not for one that is of the run, not of the compiler.

        HardwareError if it is the compiler's and the blocks must be compiled.
        """
        from torch._dynamo.exc import TorchDynamoException

        if not isinstance(error, TorchDynamoException):
            return False
        reason = f"{type(error).__name__}: {first_line(error)}"
        if self.strict:
            message = f"{what or self.name} cannot be compiled: {reason}"
            raise HardwareError(message, fix="dynamo_backend=no, or auto, which goes on without") from error
        self.failure, self.on = reason, False
        return True


def prepare(num_shapes: int, memory_budget: float) -> None:
    """Lets the compiler make as many variants of one function as there are shapes, with and without gradients.

    memory_budget: share of the activations that its own choice would keep for the backward pass; see
    `torch._functorch.config.activation_memory_budget`. For the whole process.
    """
    import torch._dynamo
    import torch._functorch.config

    # The compiler looks at every tensor's `.grad`, and PyTorch warns of that for activations.
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
    torch._functorch.config.activation_memory_budget = memory_budget
    if memory_budget < 1:
        _know_costly_operators()
    limit = 4 * num_shapes + 16  # also for blocks with fewer factors than others
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)  # type: ignore[attr-defined]


def _know_costly_operators() -> None:
    """Our products and two attentions, beside the compiler's own, are not lightly computed again to save memory.

    It has a fixed list of such operators, and where it saves it takes all others for cheap.
    """
    from torch._functorch import partitioners

    from simpletuner.kernels import product  # noqa: F401 # which makes the operators

    known = getattr(partitioners, "get_default_op_list", None)  # its own affair, and may be called otherwise some day
    if known is None or hasattr(known, "with_ours"):
        return

    @wraps(known)
    def with_ours() -> Any:
        found, ours, aten = known(), torch.ops.simpletuner, torch.ops.aten
        costly = [ours.adapted_product, ours.packed_product, ours.packed_product_dx]
        attention = "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu"
        costly += [getattr(aten, name) for name in attention if hasattr(aten, name)]
        found.compute_intensive_ops.update(costly)
        return found

    with_ours.with_ours = True  # type: ignore[attr-defined]
    partitioners.get_default_op_list = with_ours
