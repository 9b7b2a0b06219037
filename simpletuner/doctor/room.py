"""Memory, limits and folders of this machine, whatever is trained."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import simpletuner
from simpletuner.doctor.diagnosis import Diagnosis
from simpletuner.machine import Machine, existing, state_dir

GIB = 2**30
LEAST_RAM = 4 * GIB  # torch, its libraries and a scan of pictures
SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED = GIB
LEAST_HANDLES = 4096
MOUNTS = Path("/proc/mounts")
NETWORK = ("nfs", "cifs", "smb", "9p", "ceph", "lustre", "gluster", "afs", "fuse.sshfs", "fuse.s3fs", "fuse.rclone")
DAY = 24 * 3600


def ram(machine: Machine) -> Diagnosis:
    free, total = machine.ram_free_bytes, machine.ram_bytes
    text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free, {machine.cores} cores"
    if 0 < free < LEAST_RAM:
        return Diagnosis("RAM", text, "warning", "close other programs")
    return Diagnosis("RAM", text)


def limits() -> Iterator[Diagnosis]:
    """Shared memory, file handles and the clock. What is short here seldom stops a run, so these only warn."""
    if SHARED_MEMORY.is_dir():
        size = shutil.disk_usage(SHARED_MEMORY).total
        short = size < LEAST_SHARED
        fix = "docker run --shm-size=1g ..., or: mount -o remount,size=1G /dev/shm" if short else ""
        text = f"{size / GIB:.1f} GiB in {SHARED_MEMORY}" + ", below 1 GiB" * short
        yield Diagnosis("shared memory", text, "warning" if short else "ok", fix)
    if (handles := _handles()) is not None:
        short = handles < LEAST_HANDLES
        text = f"{handles} at once" + f", below {LEAST_HANDLES}" * short
        yield Diagnosis("file handles", text, "warning" if short else "ok", f"ulimit -n {LEAST_HANDLES}" * short)
    late = Path(simpletuner.__file__).stat().st_mtime - time.time()
    if late > DAY:
        text = f"{late / DAY:.0f} days before this program was installed"
        yield Diagnosis("clock", text, "warning", "timedatectl set-ntp true")
    else:
        yield Diagnosis("clock", time.strftime("%Y-%m-%d %H:%M %Z"))


def _handles() -> int | None:
    """How many files a process may have open; None where the system has no such limit."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def state_folder() -> Diagnosis:
    """Where hashes and measured rates are kept between runs."""
    folder = state_dir()
    if error := unwritable(folder):
        fix = "set SIMPLETUNER_STATE_DIR to a folder that can be written"
        return Diagnosis("state folder", f"{folder}: {error}", "fail", fix, "disk")
    if kind := network_kind(folder):
        fix = "set SIMPLETUNER_STATE_DIR to a folder on a disk of this machine"
        return Diagnosis("state folder", f"{folder} is on a network disk ({kind})", "warning", fix)
    return Diagnosis("state folder", str(folder))


def unwritable(folder: Path) -> str:
    """Why no file can be written and synced there; empty if one can. Leaves nothing behind."""
    place = existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"probe")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"{place} cannot be written: {error.strerror}"
    return ""


def network_kind(folder: Path) -> str:
    """The kind of the network file system that holds the folder; empty for a disk of this machine."""
    place = existing(folder).resolve()
    try:
        rows = [line.split() for line in MOUNTS.read_text("utf-8", errors="replace").splitlines()]
    except OSError:  # no Linux
        return ""
    above = {str(parent) for parent in (place, *place.parents)}
    mounts = [(len(row[1]), row[2]) for row in rows if len(row) > 2 and row[1].replace("\\040", " ") in above]
    kind = max(mounts, default=(0, ""))[1]
    return kind if kind.startswith(NETWORK) else ""
