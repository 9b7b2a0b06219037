"""How long a run will take: from what this machine has done before, or within wide bounds."""

from __future__ import annotations

from dataclasses import dataclass

from simpletuner.plan import rates
from simpletuner.plan.rates import Rates, Setting
from simpletuner.plan.work import Work


@dataclass(frozen=True)
class Span:
    """Seconds, at least and at most; equal where the rate was measured."""

    low: float
    high: float

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.high + other.high)


@dataclass(frozen=True)
class Time:
    """Seconds of each part of a run, downloads and loading aside. None: nothing is known of such a machine."""

    caches: Span | None
    training: Span | None
    images: Span | None
    step: Span | None
    basis: str

    @property
    def total(self) -> Span | None:
        parts = [self.caches, self.training, self.images]
        known = [part for part in parts if part]
        return sum(known, Span(0, 0)) if len(known) == len(parts) else None


def time(wanted: Setting, work: Work, cores: int, *, steps: int, images: int, texts: int, latents: int) -> Time:
    """How often each is done: optimizer steps, validation images, texts and pictures to encode."""
    measured, basis = rates.known(wanted)
    bounds = rates.guess(wanted.device, cores)

    def span(operations: float, rate: float | None, blocks: float = 0.0) -> Span | None:
        if not operations:
            return Span(0, 0)
        if rate:
            return Span(operations / rate, operations / rate)
        if not bounds:
            return None
        launches = Span(0, 0) if wanted.device == "CPU" else Span(blocks * rates.BLOCK[0], blocks * rates.BLOCK[1])
        return Span(max(operations / bounds[1], launches.low), max(operations / bounds[0], launches.high))

    encoding = [span(texts * work.text, measured.text), span(latents * work.latent, measured.latent)]
    known = [part for part in encoding if part]
    return Time(
        caches=sum(known, Span(0, 0)) if len(known) == len(encoding) else None,
        training=span(steps * work.step, measured.step, steps * work.step_blocks),
        images=span(images * work.image, measured.image, images * work.image_blocks),
        step=span(work.step, measured.step, work.step_blocks),
        basis=_basis(measured, basis, wanted, bounds is not None),
    )


def _basis(measured: Rates, basis: str, wanted: Setting, bounded: bool) -> str:
    if measured.step:
        return basis
    if not bounded:
        return f"nothing is known of {wanted.device} before its first run"
    return f"a wide guess from the size of the model and the device ({wanted.device}); the first run here measures it"
