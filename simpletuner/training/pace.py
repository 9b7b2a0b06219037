"""How the gradient of a micro-batch is computed: plain at first, then by compiled blocks, then as a replayed recording.

The first step of a run starts at once and shows what is wrong with it; compiling comes after. With `deterministic`
nothing is plain, since a resumed run must round as the unbroken one did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from simpletuner.kernels.compile import Compiled
from simpletuner.kernels.graphs import Graphs, signature

Inputs = Mapping[str, Tensor]
Backward = Callable[[Inputs, float], Tensor]  # inputs, divisor -> loss (); gradients are added to `.grad`


class Pace:
    """A `Backward` that becomes faster.

    sparing: within it a plain call needs no more memory than a fast one. tell: gets (severity, message), one line,
    whenever something changes.
    """

    def __init__(
        self,
        backward: Backward,
        loss: Callable[[Inputs], Tensor],
        parameters: Sequence[Parameter],
        *,
        compiled: Sequence[Compiled],
        record: bool,
        plain_calls: int,
        sparing: Callable[[], AbstractContextManager[None]],
        tell: Callable[[str, str], None],
    ):
        self.backward, self.compiled, self.plain_calls, self.tell = backward, list(compiled), plain_calls, tell
        self.sparing = sparing
        self.parameters = list(parameters)
        self.graphs = Graphs(loss, parameters) if record else None
        self.calls: Counter[Any] = Counter()  # fast ones, by shapes
        self._told: set[str] = set()

    def __call__(self, inputs: Inputs, divisor: float) -> Tensor:
        if self.plain_calls > 0:
            with self.sparing():
                loss = self.backward(inputs, divisor)
            self.plain_calls -= 1  # one that ran out of memory is tried again as it was
            return loss
        with ExitStack() as stack:
            for function in self.compiled:
                stack.enter_context(function.active())
            return self._fast(inputs, divisor)

    def _fast(self, inputs: Inputs, divisor: float) -> Tensor:
        key, loss = signature(inputs), None
        if self.compiled and not self.calls[key]:
            size = "x".join(str(length) for length in inputs["x_t"].shape)
            self.tell("info", f"compiling blocks for latents of {size}: this step takes longer")
        if self.graphs and self.calls[key]:
            loss = self.graphs.run(inputs, divisor)
            if self.graphs.failure:
                self._once("warning", f"steps are not recorded as a CUDA graph: {self.graphs.failure}")
            elif loss is not None:
                self._once("info", "steps are replayed as a CUDA graph")
        if loss is None:
            loss = self.backward(inputs, divisor) if self.calls[key] else self._first(inputs, divisor)
        self.calls[key] += 1
        for function in self.compiled:
            if function.failure:
                self._once("warning", f"blocks run uncompiled: {function.failure}")
        return loss

    def _first(self, inputs: Inputs, divisor: float) -> Tensor:
        """A call with new shapes. The backward pass of blocks for all shapes is compiled only when it is run: should
        that fail, what it has done to the gradients is undone, and the call runs plain."""
        before = [None if p.grad is None else p.grad.clone() for p in self.parameters if self.compiled]
        try:
            return self.backward(inputs, divisor)
        except Exception as error:
            if not any([function.gives_up(error, "the backward pass of the blocks") for function in self.compiled]):
                raise
        for parameter, gradient in zip(self.parameters, before, strict=True):
            parameter.grad = gradient
        with self.sparing():
            return self.backward(inputs, divisor)

    def rest(self) -> None:
        """Gives memory back before something else needs the device, such as validation."""
        if self.graphs:
            self.graphs.release()

    def _once(self, severity: str, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self.tell(severity, message)
