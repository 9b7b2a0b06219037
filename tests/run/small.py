"""Small whole runs: a folder of pictures, a configuration, and what a run leaves behind.

Also a program that runs configurations in forked children, which spares each of them the import of torch; `Forks`
talks to it.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from simpletuner.check import check, with_seed
from simpletuner.encoding import encode
from simpletuner.errors import Stopped, raise_errors
from simpletuner.events import EventLog, read_lines
from simpletuner.process import run as whole_process
from simpletuner.recipe import Run
from simpletuner.training.signals import StopRequest

ROOT = Path(__file__).parents[2]
SIZES = ((80, 80), (64, 64), (120, 70), (70, 120), (90, 60), (64, 96), (100, 100))  # width, height: several buckets
SQUARE = ((64, 64),) * 8
RESULT = "pytorch_lora_weights.safetensors"
SAMPLES = {  # options of a run that makes a small picture now and then
    "validation_disable": False,
    "validation_prompt": "photo of a red cat",
    "validation_num_inference_steps": 2,
    "validation_resolution": "64x64",
}


def paint(folder: Path, sizes=SIZES) -> Path:
    """One picture of noise a size, each with a caption beside it, the second with two."""
    folder.mkdir(parents=True)
    for number, (width, height) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"picture {number}.png")
        captions = [f"photo of a red cat {number}"] + ["the small dog"] * (number == 1)
        (folder / f"picture {number}.txt").write_text("\n".join(captions))
    return folder


def tree(folder: Path) -> dict[str, tuple]:
    """Every file and folder below: kind, mode, size, mtime, content."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        stat = path.stat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (stat.st_mode, stat.st_size, stat.st_mtime_ns, content)
    return found


def configure(home: Path, model: Path, pictures: Path, output: str = "out", **changes) -> Path:
    """Writes a configuration and its dataset file; returns the configuration's path."""
    home.mkdir(parents=True, exist_ok=True)
    entry = {"id": "pictures", "type": "local", "instance_data_dir": str(pictures), "caption_strategy": "textfile"}
    datasets = home / "datasets.json"
    datasets.write_text(json.dumps([entry | {"resolution": 64}]))
    values = {
        "model_flavour": "nano",
        "pretrained_model_name_or_path": str(model),
        "output_dir": str(home / output),
        "cache_dir_text": str(home / "cache" / "text"),
        "cache_dir_vae": str(home / "cache" / "vae"),
        "data_backend_config": str(datasets),
        "resolution": 64,
        "mixed_precision": "no",
        "vae_dtype": "fp32",
        "optimizer": "torch-adamw",
        "learning_rate": 1e-2,
        "lora_rank": 4,
        "gradient_checkpointing": False,
        "max_train_steps": 10,
        "checkpoint_step_interval": 4,
        "validation_disable": True,
        "torch_num_threads": 1,
    }
    path = home / f"{output}.json"
    path.write_text(json.dumps({k: v for k, v in (values | changes).items() if v is not None}))
    return path


def prepared(config: Path) -> Run:
    """The run that the configuration asks for, not begun."""
    checked = with_seed(check(config, {}, environ={}))
    raise_errors(checked.problems)
    output_dir = Path(json.loads(config.read_text())["output_dir"])
    output_dir.mkdir(parents=True, exist_ok=True)  # as the lock of a real run does
    return Run(checked.config, checked.datasets, checked.prompts, EventLog(output_dir), StopRequest())


def train(config: Path) -> Run:
    """Runs it in this process, to its end."""
    run = prepared(config)
    run.train()
    return run


def stop_after(run: Run, step: int) -> None:
    """Asks the run to stop once that step is done."""

    def ask(event) -> None:
        if event.type == "step.done" and event.step == step:
            run.stop.ask("the test", 0)

    run.events.subscribe(ask)
    with pytest.raises(Stopped):
        run.train()
    assert run.progress.step == step


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


def start(config: Path, *program: str, **popen) -> subprocess.Popen:
    """`python -m program --config config` as a process of its own; the trainer unless another program is named."""
    return subprocess.Popen(
        [sys.executable, "-m", *(program or ("simpletuner.recipe",)), "--config", str(config)],
        env=environment(), cwd=config.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **popen,
    )  # fmt: skip


def wait_for(path: Path, child: subprocess.Popen, seconds: float = 60) -> None:
    """Returns once the path exists; fails if the child ends before."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()[0]
        time.sleep(0.005)


def holder(output: Path) -> int:
    """The process that has the run's lock."""
    return json.loads((output / ".lock").read_text())["pid"]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def state(output: Path, step: int = 10) -> dict[str, torch.Tensor | str]:
    """All that must be equal between two runs: weights, optimizer, the trainer's numbers, the exported file."""
    folder = output / f"checkpoint-{step}"
    found: dict[str, torch.Tensor | str] = {}
    for path in folder.rglob("*.safetensors"):
        found |= {f"{path.relative_to(folder)}:{key}": value for key, value in load_file(path).items()}
    assert any(name.startswith("state/optimizer-0.safetensors:") for name in found) and len(found) > 100
    numbers = json.loads((folder / "state/trainer.json").read_text())
    scalars = json.loads((folder / "state/optimizer.json").read_text())
    return found | {"trainer": json.dumps(numbers), "optimizer": json.dumps(scalars)}


def differences(one: dict, other: dict) -> list[str]:
    """The keys whose values are not equal to the bit."""
    wrong = sorted(set(one) ^ set(other))
    for key in set(one) & set(other):
        a, b = one[key], other[key]
        same = torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
        wrong += [] if same else [key]
    return wrong


def newest(output: Path) -> Path:
    """The checkpoint of the highest step."""
    return max(output.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))


def metrics(output: Path) -> dict[int, dict[str, float]]:
    """The numbers of every step; of a step that was run twice, those of the last attempt."""
    return {record["step"]: record["values"] for record in read_lines(output / "metrics.jsonl")}


EXACT = ("train_loss", "loss_ema", "learning_rate", "epoch", "grad_norm", "grad_absmax", "samples_seen")


def exact(output: Path) -> dict[int, list[float]]:
    """The metrics that do not depend on the clock."""
    return {step: [values[name] for name in EXACT] for step, values in metrics(output).items()}


def events(output: Path, kind: str) -> list[dict]:
    return [e["data"] for e in read_lines(output / "events.jsonl") if e["type"] == kind]


# ---- processes that are struck


class Strike:
    """Sends this process a signal at its n-th call that changes the disk; counts them all.

    It comes before the call, but after the opening of a file: then the file is there, and nothing is in it.
    """

    def __init__(self, n: int, number: int):
        self.n, self.number, self.calls = n, number, 0
        self.lock = threading.Lock()  # the cache is written by a thread of its own
        for module, name in (
            (os, "fsync"), (os, "rename"), (os, "replace"), (os, "mkdir"), (os, "unlink"), (os, "rmdir"), (io, "open"),
        ):  # fmt: skip
            setattr(module, name, self.counted(name, getattr(module, name)))

    def counted(self, name, call):
        def struck(*args, **kwargs):
            mode = str(args[1] if len(args) > 1 else kwargs.get("mode", "r"))
            if name == "open" and not set("wax") & set(mode):
                return call(*args, **kwargs)
            with self.lock:
                self.calls += 1
                now = self.calls == self.n
            result = call(*args, **kwargs) if name == "open" or not now else None
            if now:
                os.kill(os.getpid(), self.number)
            return result if name == "open" or not now else call(*args, **kwargs)

        return struck


def child(config: str, n: int, number: int, build: bool) -> None:
    """Runs the configuration, or fills its caches, and ends the process; leaves the number of calls beside it."""
    strike = Strike(n, number)
    code = whole_process(Path(config), job=encode) if build else whole_process(Path(config))
    Path(config + ".calls").write_text(str(strike.calls))
    os._exit(code)


ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT  # looks, and leaves the status to be asked for


def serve() -> None:
    """Answers each line of stdin, [config, n, signal, when, build], with [exit status, seconds].

    when: seconds until the signal is sent, or a pattern for the first path below the configuration's folder that
    brings it.
    """
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # so that no child walks through the libraries' objects, and copies their pages
    for line in sys.stdin:
        config, n, number, when, build = json.loads(line)
        begun = time.monotonic()
        pid = os.fork()
        if pid == 0:
            with open(config + ".log", "a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            child(config, n, number, build)
        if isinstance(when, str):
            while not any(Path(config).parent.glob(when)) and os.waitid(os.P_PID, pid, ENDED) is None:
                time.sleep(0.002)
        elif when is not None:
            time.sleep(when)
        if when is not None:
            os.kill(pid, number)
        _, status = os.waitpid(pid, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - begun]), flush=True)


class Forks:
    """Runs in processes that have loaded everything already: a run takes less than a second."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}"),
        )  # fmt: skip

    def run(
        self,
        config: Path,
        at_call: int = 0,
        number: int = signal.SIGKILL,
        after: float | str | None = None,
        build: bool = False,
    ) -> int:
        """The exit status. The signal comes before the `at_call`-th change of the disk, after some seconds, or after
        the first path below the configuration's folder that fits the pattern. build: only the caches are filled."""
        self.server.stdin.write(json.dumps([str(config), at_call, int(number), after, build]) + "\n")
        self.server.stdin.flush()
        status, self.seconds = json.loads(self.server.stdout.readline())
        return status

    def close(self) -> None:
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait(30)


if __name__ == "__main__":
    # Loaded once, here: the families' libraries come late in a run.
    from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel  # noqa: F401
    from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel  # noqa: F401

    import simpletuner.models.flux.family  # noqa: F401

    serve()
