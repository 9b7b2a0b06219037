"""Trains four steps with a save every two, once for every call to the system that could be the last one of the process.

For each such call a forked child dies by SIGKILL just before it; the parent then resumes. Prints a JSON report.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from toy_run import Run, equal

SAVING = {"checkpoint_step_interval": 2, "checkpoints_total_limit": 1}


class Death:
    """Counts calls that change the disk, and kills the process before the n-th."""

    def __init__(self, n: int):
        self.n, self.calls = n, 0
        for module, name in (
            (os, "fsync"), (os, "rename"), (os, "mkdir"), (os, "unlink"), (os, "rmdir"), (os, "utime"), (io, "open"),
        ):  # fmt: skip
            setattr(module, name, self._wrapped(name, getattr(module, name)))

    def _wrapped(self, name, call):
        def counted(*args, **kwargs):
            if name == "open" and not set(str((args[1:] or [kwargs.get("mode", "r")])[0])) & set("wax"):
                return call(*args, **kwargs)
            self.calls += 1
            if self.calls == self.n:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted


def train(folder: Path, n: int) -> int:
    """Starts from step 2, whose checkpoint is there already, and counts only from then on."""
    run = Run(folder, steps=4, saving=SAVING)
    assert run.progress.step == 2
    death = Death(n)
    run.train()
    return death.calls


def in_child(folder: Path, n: int) -> int | None:
    """The number of calls of a child that lived; None if it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        calls = train(folder, n)
        os.write(writer, str(calls).encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        text = file.read()
    if os.WIFSIGNALED(status):
        return None
    assert status == 0, f"child {n} failed"
    return int(text)


def main() -> None:
    torch.set_num_threads(1)
    home = Path(sys.argv[1])
    straight = Run(home / "straight", steps=4, saving=SAVING).train().everything()
    start = home / "start"
    Run(start, steps=2, saving=SAVING).train()
    shutil.copytree(start, home / "whole")
    calls = in_child(home / "whole", 0)
    assert calls
    resumed_at, wrong = [], []
    for n in range(1, calls + 1):
        folder = home / f"killed-{n}"
        shutil.copytree(start, folder)
        if in_child(folder, n) is not None:
            wrong.append(f"{n}: not killed")
        again = Run(folder, steps=4, saving=SAVING)
        resumed_at.append(again.progress.step)
        if not equal(again.train().everything(), straight):
            wrong.append(f"{n}: other weights")
        left = sorted(p.name for p in folder.iterdir() if p.name.startswith((".incomplete", ".deleting", "checkpoint")))
        if left not in (["checkpoint-4"], ["checkpoint-2", "checkpoint-4"]):  # limit and one more
            wrong.append(f"{n}: {left}")
        shutil.rmtree(folder)
    print(json.dumps({"calls": calls, "resumed_at": resumed_at, "wrong": wrong}))


if __name__ == "__main__":
    main()
