"""What this machine has, without torch: GPUs as their driver reports them, RAM, cores, free disk."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

QUERY = ("index", "uuid", "name", "memory.total", "memory.free", "compute_cap", "driver_version")
DRIVER_SECONDS = 10  # a driver that hangs must not hang the program
MIB, KIB = 2**20, 2**10
AMD, APPLE = "AMD GPU", "Apple GPU"


@dataclass(frozen=True)
class Gpu:
    """One GPU that a run may use. `index` counts among those that are visible, as CUDA does."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int] = (0, 0)  # CUDA compute capability; (0, 0) if the driver does not say
    driver: str = ""

    @property
    def has_bf16(self) -> bool:
        return self.capability >= (8, 0)


@dataclass(frozen=True)
class Machine:
    """What a run can count on. Without a GPU everything happens in RAM."""

    gpus: tuple[Gpu, ...]
    ram_bytes: int
    ram_free_bytes: int
    cores: int
    other_gpu: str = ""  # AMD or APPLE: one that trains as well, but whose driver is not asked

    @property
    def has_gpu(self) -> bool:
        """Of any maker, also where its driver says nothing more."""
        return bool(self.gpus or self.other_gpu)

    @property
    def device_name(self) -> str:
        return self.gpus[0].name if self.gpus else self.other_gpu or "CPU"


def look(environ: Mapping[str, str] = os.environ) -> Machine:
    """Asks the driver and the system; takes a fraction of a second."""
    total, free = _ram()
    gpus = tuple(_gpus(environ.get("CUDA_VISIBLE_DEVICES")))
    return Machine(gpus, total, free, _cores(), "" if gpus else _other_gpu())


def existing(path: Path) -> Path:
    """The file or folder, or the nearest folder above it that is there."""
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    return path


def disk_free(path: Path) -> int:
    """Bytes free where `path` is, or would be made."""
    return shutil.disk_usage(existing(path)).free


def state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the program remembers what it learned of this machine; it may be deleted at any time."""
    return Path(environ.get("SIMPLETUNER_STATE_DIR") or "~/.simpletuner").expanduser()


def _gpus(visible: str | None) -> list[Gpu]:
    """Those that CUDA would show, in its order: indices or UUIDs in CUDA_VISIBLE_DEVICES; the first unknown ends it."""
    rows = [[cell.strip() for cell in line.split(",")] for line in _driver().splitlines()]
    found = [row for row in rows if len(row) == len(QUERY) and row[0].isdigit()]
    if visible is not None:
        chosen = []
        for word in (part.strip() for part in visible.split(",")):
            row = next((r for r in found if word and (r[0] == word or r[1].startswith(word))), None)
            if row is None:
                break
            chosen.append(row)
        found = chosen
    return [_gpu(number, row) for number, row in enumerate(found)]


def _gpu(number: int, row: list[str]) -> Gpu:
    _, _, name, total, free, capability, driver = row
    major, _, minor = capability.partition(".")
    numbers = (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)
    return Gpu(number, name, _mib(total), _mib(free), numbers, driver)


def _other_gpu() -> str:
    if Path("/dev/kfd").exists():  # of the ROCm driver
        return AMD
    return APPLE if (platform.system(), platform.machine()) == ("Darwin", "arm64") else ""


def _mib(text: str) -> int:
    return int(float(text) * MIB) if text.replace(".", "", 1).isdigit() else 0


def _driver() -> str:
    """nvidia-smi's answer, one GPU a line; empty without one."""
    if not (tool := shutil.which("nvidia-smi")):
        return ""
    argv = [tool, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=DRIVER_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _ram() -> tuple[int, int]:
    """(all, free for programs) in bytes, within the limit of a container; zeros where the system does not say."""
    try:
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
        total, free = (int(rows[name].split()[0]) * KIB for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        try:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # macOS
        except (ValueError, OSError, AttributeError):
            total = 0
        return total, total
    limit, used = (_number(Path("/sys/fs/cgroup", name)) for name in ("memory.max", "memory.current"))
    if limit is not None and limit < total:
        return limit, min(free, limit - (used or 0))
    return total, free


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or the word "max"
        return None


def _cores() -> int:
    """Those that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
