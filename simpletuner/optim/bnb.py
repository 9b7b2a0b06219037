"""bitsandbytes' optimizers with few launches that wait for nothing, and with state that can be put back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from bitsandbytes import optim
from torch import Tensor

from simpletuner.optim.joined import Row, rows, runs

LARGEST = 4 * 2**20  # numbers of a parameter that is joined with others; larger ones are few and worth a launch
BLOCK = 256  # numbers that share a scale; nothing in an update reaches across blocks
ALONG = {"state1": 1, "state2": 1, "absmax1": BLOCK, "absmax2": BLOCK}  # numbers of a parameter for one of the state


class Queued(torch.optim.Optimizer):
    """Goes before a class of bitsandbytes, which waits for the device after each tensor."""

    is_paged: bool
    init_state: Any
    prefetch_state: Any
    update_step: Any
    _cpu_paged_warned = True  # a rule says it before the run: without a GPU there is nothing to page

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "gradients are computed before the step"
        for group_index, group in enumerate(self.param_groups):
            ready = {p: index for index, p in enumerate(group["params"]) if p.grad is not None}
            for p, index in ready.items():
                if not self.state[p]:
                    self._begin(p, group_index, index)
            self._update(group_index, ready)
        if self.is_paged and torch.cuda.is_available():
            torch.cuda.synchronize()  # sync point: the host may read what lies in memory that both share

    @torch.no_grad()
    def start(self, p: Tensor) -> None:
        """The state of a parameter as before its first update; paged where the optimizer is."""
        for group_index, group in enumerate(self.param_groups):
            for index, other in enumerate(group["params"]):
                if other is p:
                    self._begin(p, group_index, index)

    def _begin(self, p: Tensor, group_index: int, index: int) -> None:
        self.init_state(self.param_groups[group_index], p, group_index, index)

    def _update(self, group_index: int, ready: Mapping[Tensor, int]) -> None:
        """One update of the parameters that are ready; each comes with its place in the group."""
        for p, index in ready.items():
            self.prefetch_state(p)
            self.update_step(self.param_groups[group_index], p, group_index, index)


class Shared(NamedTuple):
    """The state of a row: as it is for the whole, and what of it is each member's."""

    whole: dict[str, Any]
    views: list[dict[str, Any]]


class Joined(Queued):
    """The same for classes whose state has a number for each of the parameter: small parameters share launches.

    They become views of one tensor when the optimizer is made, and their state views of that tensor's. Since they are
    whole blocks, the results are those of one by one, to the bit. A launch ends at a parameter without a gradient, at
    one that has had fewer updates, and at one that was given other data or state since, which is then updated alone.
    """

    args: Any

    def __init_subclass__(cls) -> None:
        cls.__signature__ = inspect.signature(cls.__bases__[1])  # type: ignore[attr-defined]  # what `build` goes by

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._rows = [rows(p for p in group["params"] if self._fits(p)) for group in self.param_groups]
        self._places = {p: (row, place) for found in self._rows for row in found for place, p in enumerate(row.members)}
        self._shared: dict[Row, Shared] = {}  # from a row's first update on

    def _fits(self, p: Tensor) -> bool:
        args = self.args  # two of them are of older versions
        measured = args.max_unorm > 0 or getattr(args, "percentile_clipping", 100) < 100
        if measured or not getattr(args, "block_wise", True):
            return False  # something is taken of the whole tensor
        return max(1, args.min_8bit_size) <= p.numel() <= LARGEST and p.numel() % BLOCK == 0

    def _begin(self, p: Tensor, group_index: int, index: int) -> None:
        row, place = self._places.get(p, (None, 0))
        if row is None or not row.holds(place):
            return super()._begin(p, group_index, index)
        if row not in self._shared:
            self._shared[row] = self._share(row, group_index, index)
        self.state[p] = {"step": 0, **self._shared[row].views[place]}
        for key in ALONG.keys() & self.state[p].keys():
            self.state[p][key].zero_()  # it may have been in use, and given up

    def _share(self, row: Row, group_index: int, index: int) -> Shared:
        """The state of a row, made by bitsandbytes as if it were a parameter."""
        super()._begin(row.flat, group_index, index)
        whole = self.state.pop(row.flat)
        del whole["step"]
        views = [dict(whole) for _ in row.members]  # maps of 8-bit codes are for all
        for key in ALONG.keys() & whole.keys():
            for view, p, part in zip(views, row.members, row.cut(whole[key], ALONG[key]), strict=True):
                view[key] = _paged_as(whole[key], part.view_as(p) if ALONG[key] == 1 else part)
        return Shared(whole, views)

    def _update(self, group_index: int, ready: Mapping[Tensor, int]) -> None:
        alone = dict(ready)
        for row in self._rows[group_index]:
            for start, stop in runs(self._step_of(row, place) for place in range(len(row.members))):
                self._update_run(row, start, stop, group_index, ready[row.members[start]])
                for p in row.members[start:stop]:
                    del alone[p]
        super()._update(group_index, alone)

    def _step_of(self, row: Row, place: int) -> int | None:
        """Updates that a member has had; None if it has no gradient now, or it or its state lies elsewhere."""
        p = row.members[place]
        if p.grad is None or not row.holds(place) or row not in self._shared:
            return None
        state = self.state[p]
        here = all(state.get(key) is view for key, view in self._shared[row].views[place].items())
        return state["step"] if here else None

    def _update_run(self, row: Row, start: int, stop: int, group_index: int, index: int) -> None:
        """One update of neighbours as of one parameter; `index` is the place of the first in the group."""
        flat, members = row.stretch(row.flat, start, stop), row.members[start:stop]
        flat.grad = row.gradients(start, stop)
        self.state[flat] = {"step": self.state[members[0]]["step"]}
        for key, whole in self._shared[row].whole.items():
            part = row.stretch(whole, start, stop, ALONG[key]) if key in ALONG else whole
            self.state[flat][key] = _paged_as(whole, part)
        try:
            super()._update(group_index, {flat: index})
        finally:
            step = self.state.pop(flat)["step"]
        for p in members:
            self.state[p]["step"] = step


def _paged_as(whole: Tensor, part: Tensor) -> Tensor:
    """The view, with the marks by which bitsandbytes knows memory that host and device share."""
    if getattr(whole, "is_paged", False):
        part.is_paged, part.page_deviceid = True, whole.page_deviceid  # type: ignore[attr-defined]
    return part


class BnbAdamW(Joined, optim.AdamW): ...


class BnbAdamW8bit(Joined, optim.AdamW8bit): ...


class BnbPagedAdamW(Joined, optim.PagedAdamW): ...


class BnbPagedAdamW8bit(Joined, optim.PagedAdamW8bit): ...


class BnbAdam(Joined, optim.Adam): ...


class BnbAdam8bit(Joined, optim.Adam8bit): ...


class BnbLion(Joined, optim.Lion): ...


class BnbLion8bit(Joined, optim.Lion8bit): ...


class BnbPagedLion(Joined, optim.PagedLion): ...


class BnbPagedLion8bit(Joined, optim.PagedLion8bit): ...


class BnbAdagrad(Joined, optim.Adagrad): ...


class BnbAdagrad8bit(Joined, optim.Adagrad8bit): ...


# Their state has two numbers for each of a parameter, one after the other for the whole tensor.
class BnbAdEMAMix(Queued, optim.AdEMAMix): ...


class BnbAdEMAMix8bit(Queued, optim.AdEMAMix8bit): ...


class BnbPagedAdEMAMix(Queued, optim.PagedAdEMAMix): ...


class BnbPagedAdEMAMix8bit(Queued, optim.PagedAdEMAMix8bit): ...
