"""What the host holds while a large model is packed: the result, and little beside it."""

from __future__ import annotations

import json
import subprocess
import sys

MIB = 2**20
PROGRAM = """
import json, sys, threading, time
from functools import partial
from pathlib import Path
import torch
from torch import nn
from safetensors.torch import save_file
from simpletuner.models.stream import fill
from simpletuner.protocols import Unfilled
from simpletuner.quantization import store
from simpletuner.quantization.packer import Packer

LAYERS, WIDTH = 16, 4096  # matrices that the C library gives back to the system at once when they are freed
root = Path(sys.argv[1])
torch.set_num_threads(2)

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(next(l for l in status.splitlines() if l.startswith("RssAnon")).split()[1]) * 1024

def peak(job):
    before, highest, done = anonymous(), [0], threading.Event()
    def watch():
        while not done.is_set():
            highest[0] = max(highest[0], anonymous())
            time.sleep(0.002)
    thread = threading.Thread(target=watch)
    thread.start()
    result = job()
    done.set()
    thread.join()
    return highest[0] - before, result

for shard in range(4):
    names = [f"{n}.weight" for n in range(LAYERS) if n % 4 == shard]
    save_file({name: torch.randn(WIDTH, WIDTH).bfloat16() for name in names}, root / f"{shard}.safetensors")

def load():
    with torch.device("meta"):
        module = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    packer = Packer("int8-compute", torch.bfloat16, root=root / "kept")
    files = sorted(root.glob("*.safetensors"))
    packer.load(Unfilled("part", module, "x", partial(fill, module, files, dtype=torch.bfloat16)), torch.device("cpu"))
    return module, packer.num_packed

torch.randn(WIDTH, WIDTH).float().abs().amax(dim=1)  # threads and buffers of torch itself
store.SHARD_BYTES = 20 * 2**20
first, (module, packed) = peak(load)
size = sum(t.nbytes for t in store.contents(module).values())
del module
second, (module, again) = peak(load)
print(json.dumps({"first": first, "second": second, "size": size, "packed": [packed, again]}))
"""


def test_the_peak_is_the_packed_result_and_a_few_tensors(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    matrix = 4096 * 4096  # weights
    source = 16 * 2 * matrix  # files of 537 MB in bf16
    assert told["packed"] == [16, 0] and told["size"] < 0.51 * source
    beside = 2 * matrix + 4 * matrix + matrix + 40 * MIB  # one in bf16, in fp32 and in int8, and torch's own
    assert told["first"] < told["size"] + beside < source
    assert told["second"] < told["size"] + 40 * MIB
