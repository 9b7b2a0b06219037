"""Whether a run fits into this machine's memory, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from simpletuner.config import Config
from simpletuner.data.datasets import ImageSet
from simpletuner.errors import Problem
from simpletuner.machine import Gpu, Machine
from simpletuner.memory import budget
from simpletuner.memory.options import Offload
from simpletuner.models import families
from simpletuner.models.options import Model
from simpletuner.plan.memory import Phase, estimate
from simpletuner.plan.relief import Change, changes

OF_THE_GPU = ("workspace",)  # names in a phase that nothing takes where there is no GPU
FALLS_BACK = ("text cache",)  # phases that go on in RAM where the GPU is too small for them, as data.ladder has it
MOST = 3  # alternatives that are told
GIB = 2**30
Buckets = Sequence[tuple[int, int]]  # (height, width) in pixels


@dataclass(frozen=True)
class Remedy:
    """A change, all those before it where `together`, and what the run needs then."""

    change: Change
    peak_bytes: int
    fits: bool
    together: bool


@dataclass(frozen=True)
class Fit:
    """The phases of a run beside the memory that is there; 0 where the system does not say."""

    phases: tuple[Phase, ...]
    gpu: Gpu | None
    unknown: str  # a GPU whose memory is not known
    ram_bytes: int
    ram_free_bytes: int

    @property
    def elsewhere(self) -> list[Phase]:
        """Phases that are too large for the GPU and go on in RAM."""
        most = self.gpu.total_bytes if self.gpu else 0
        return [phase for phase in self.phases if most and phase.name in FALLS_BACK and phase.vram_bytes > most]

    @property
    def vram(self) -> Phase:
        """The phase that needs most on the device."""
        away = self.elsewhere
        return max((phase for phase in self.phases if phase not in away), key=lambda phase: phase.vram_bytes)

    @property
    def on_gpu(self) -> bool:
        return bool(self.gpu or self.unknown)

    @property
    def ram_needed(self) -> int:
        return max(self.ram_of(phase) for phase in self.phases)

    def holds(self, name: str) -> bool:
        """Whether the phase of that name fits, or there is none."""
        phases = [phase for phase in self.phases if phase.name == name]
        ram = not self.ram_bytes or all(self.ram_of(phase) <= self.ram_bytes for phase in phases)
        return ram and (not self.gpu or all(phase.vram_bytes <= self.gpu.total_bytes for phase in phases))

    def ram_of(self, phase: Phase) -> int:
        """Without a GPU, or where it is too small, what would lie on it lies in RAM, and is not there twice."""
        if self.on_gpu and phase not in self.elsewhere:
            return phase.ram_bytes
        moved = sum(size for name, size in phase.vram.items() if name not in OF_THE_GPU)
        return max(moved + phase.ram.get("program", 0), phase.ram_bytes)

    @property
    def needed(self) -> int:
        """Of the memory that decides: the GPU's, or RAM."""
        return self.vram.vram_bytes if self.on_gpu else self.ram_needed

    @property
    def available(self) -> int:
        """All there is of it, whoever uses it now; 0: not known."""
        return self.gpu.total_bytes if self.gpu else 0 if self.unknown else self.ram_bytes

    @property
    def fits(self) -> bool:
        enough_ram = not self.ram_bytes or self.ram_needed <= self.ram_bytes
        return enough_ram and (not self.available or self.needed <= self.available)


def fit(config: Config, machine: Machine, buckets: Buckets) -> Fit:
    gpu = machine.gpus[0] if machine.gpus else None
    return Fit(estimate(config, buckets), gpu, machine.other_gpu, machine.ram_bytes, machine.ram_free_bytes)


def remedies(
    config: Config, machine: Machine, buckets: Buckets, images: Sequence[ImageSet], alignment: int
) -> list[Remedy]:
    """Cheapest in quality first: at most three that suffice each, else the fewest that suffice together."""

    def after(chosen: Sequence[Change]) -> Fit:
        changed, ratio = config, 1.0
        for change in chosen:
            changed, ratio = change.applied(changed), ratio * change.scale
        smaller = [(_scaled(height, ratio, alignment), _scaled(width, ratio, alignment)) for height, width in buckets]
        return fit(changed, machine, buckets if ratio == 1 else smaller)

    alone = []
    swap = _fewest_moved(config, machine, buckets)
    for change in changes(config, images, validation=not after([]).holds("validation"), swap=swap):
        then = after([change])
        alone.append(Remedy(change, then.needed, then.fits, together=False))
    if any(remedy.fits for remedy in alone):
        return [remedy for remedy in alone if remedy.fits][:MOST]
    together = _fewest([remedy.change for remedy in alone], after)
    found = []
    for number, change in enumerate(together, 1):
        then = after(together[:number])
        found.append(Remedy(change, then.needed, then.fits, together=True))
    return found


def _fewest_moved(config: Config, machine: Machine, buckets: Buckets) -> int:
    """The smallest `blocks_to_swap` that fits with a twentieth to spare; as many as can move if that is not enough.

    0 where no GPU is short of memory: there is nothing that they could make room on.
    """
    family = families()[config[Model].model_family]
    now, most = config[Offload].blocks_to_swap, family.shapes(config[Model]).num_blocks - 1
    if not machine.gpus or now >= most:
        return 0
    limit = machine.gpus[0].total_bytes * (1 - budget.SPARE)

    def fits(count: int) -> bool:
        return fit(config.changed(blocks_to_swap=count), machine, buckets).needed <= limit

    low, high = now + 1, most  # each more needs less, but for the first, which brings the slots
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


def _fewest(offered: Sequence[Change], after: Callable[[Sequence[Change]], Fit]) -> list[Change]:
    """Of the changes, those without which it does not fit; none if all of them are not enough."""
    chosen = list(offered)
    if not after(chosen).fits:
        return []
    for change in reversed(offered):  # what costs most quality is the first to be spared
        rest = [one for one in chosen if one is not change]
        chosen = rest if after(rest).fits else chosen
    return chosen


def _scaled(edge: int, ratio: float, alignment: int) -> int:
    """An edge at another resolution, about: each picture is placed anew."""
    return max(1, round(edge * ratio / alignment)) * alignment


def problems(found: Fit, remedies: Sequence[Remedy]) -> list[Problem]:
    """An error if it does not fit, warnings if others use the memory that it needs, or if a part goes on the CPU."""
    return [*_lack(found, remedies), *_detours(found)]


def _detours(found: Fit) -> Iterator[Problem]:
    for phase in found.elsewhere:
        message = f"{phase.name}: its {phase.vram_bytes / GIB:.1f} GiB are more than {found.gpu.name} has"  # type: ignore[union-attr]
        fix = (
            "text_encoder_2_precision=int8-quanto halves it; enable_group_offload and group_offload_text_encoder fit it"
        )
        yield Problem(f"{message}, so captions are encoded on the CPU, slowly", "hardware", "warning", fix=fix)


def _lack(found: Fit, remedies: Sequence[Remedy]) -> list[Problem]:
    if not found.fits:
        if found.gpu and found.needed > found.available:
            what = f"{found.gpu.name} has {found.gpu.total_bytes / GIB:.1f} GiB, and {found.vram.name} needs"
            what += f" about {found.needed / GIB:.1f} GiB"
        else:
            what = f"this machine has {found.ram_bytes / GIB:.1f} GiB of RAM, and the run needs"
            what += f" about {found.ram_needed / GIB:.1f} GiB"
        fix = " and ".join(str(remedy.change) for remedy in remedies if remedy.together or remedy is remedies[0])
        return [Problem(what, "hardware", fix=fix or "use a machine with more memory")]
    if found.gpu and found.needed > found.gpu.free_bytes > 0:
        used = (found.gpu.total_bytes - found.gpu.free_bytes) / GIB
        message = f"other programs use {used:.1f} GiB of {found.gpu.name}: what is left is too little"
        return [Problem(message, "hardware", "warning", fix="close them before you start")]
    if not found.on_gpu and found.needed > found.ram_free_bytes > 0:
        message = f"about {found.needed / GIB:.1f} GiB of RAM are needed, and {found.ram_free_bytes / GIB:.1f} are free"
        return [Problem(message, "hardware", "warning", fix="close other programs before you start")]
    return []
