"""Python, torch and the packages: whether they are there, fit each other, and can reach the GPU."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator

from simpletuner import software
from simpletuner.doctor.diagnosis import Diagnosis
from simpletuner.machine import AMD, Machine

OLDEST = (3, 10)
TRY_SECONDS = 120  # torch may need long to load from a slow disk, but a driver that hangs must not hang the doctor
# Computes on the GPU, because a build for other cards, or for a newer driver, says so only then.
TRY = """
import json, torch
try:
    value = float((torch.ones(8, device="cuda") * 2).sum())
    print(json.dumps({"ok": value == 16.0, "error": "it computes wrongly"}))
except Exception as error:
    print(json.dumps({"ok": False, "error": str(error).strip().splitlines()[0]}))
"""
INSTALL = "pip install 'simpletuner[cuda]'"


def python() -> Diagnosis:
    version = platform.python_version()
    if sys.version_info < OLDEST:
        fix = "apt -y install python3.12 python3.12-venv"
        return Diagnosis("Python", f"{version} is older than 3.10", "fail", fix, "config")
    return Diagnosis("Python", version)


def torch(machine: Machine) -> Iterator[Diagnosis]:
    """The build of torch, and the GPUs that it can use."""
    build = software.torch_build()
    if build is None:
        yield Diagnosis("torch", "not installed", "fail", INSTALL, "config")
        return
    text = f"{build.version} for {build.devices}"
    if machine.gpus and not build.cuda:
        text += f", but this machine has {machine.gpus[0].name}"
        yield Diagnosis("torch", text, "fail", f"pip uninstall -y torch && {INSTALL}")
    elif machine.other_gpu == AMD and not build.hip:
        fix = "pip uninstall -y torch && pip install 'simpletuner[rocm]'"
        yield Diagnosis("torch", f"{text}, but this machine has an AMD GPU", "fail", fix)
    else:
        yield Diagnosis("torch", text)
    yield from _gpus(machine, build)


def _gpus(machine: Machine, build: software.TorchBuild) -> Iterator[Diagnosis]:
    for gpu in machine.gpus:
        major, minor = gpu.capability
        text = f"{gpu.name}, {gpu.total_bytes / 2**30:.0f} GiB, compute {major}.{minor}, driver {gpu.driver}"
        yield Diagnosis(f"GPU {gpu.index}", text)
    if machine.gpus and build.cuda:
        error = _try_gpu()
        fix = "update the driver, or install a torch for it: https://pytorch.org/get-started/locally"
        yield Diagnosis("torch on GPU", error, "fail", fix) if error else Diagnosis("torch on GPU", "computes")
    elif not machine.has_gpu:
        text = "none; full-size models need one, nano does not"
        yield Diagnosis("GPU", text, "warning", "simpletuner train --example nano")


def _try_gpu() -> str:
    """What keeps torch from computing on the GPU; empty if nothing does. In its own process: torch is slow to load."""
    try:
        done = subprocess.run([sys.executable, "-c", TRY], capture_output=True, text=True, timeout=TRY_SECONDS)
        answer = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return f"no answer within {TRY_SECONDS} s"
    except (IndexError, ValueError):
        return f"torch cannot be loaded: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    return "" if answer["ok"] else answer["error"]


def requirements() -> Diagnosis:
    """What the program needs beside torch. What a choice of the configuration needs is a matter of its rules."""
    unmet = software.unmet()
    if not unmet:
        return Diagnosis("packages", "all there")
    text = ", ".join(f"{u.requirement} ({u.found or 'missing'})" for u in unmet)
    fix = "pip install " + " ".join(f"'{u.requirement}'" for u in unmet)
    return Diagnosis("packages", text, "fail", fix, "config")
