"""Seconds per step and peak memory of a LoRA on a Flux of the true size, row by row, through the product's own run.

    python benchmarks/engine.py --work /fast/disk --out benchmarks/results --rows "bf16*"

Each row is a configuration that runs in this process from its file to its last step: loader, caches, trainer, all of
it; what the plan predicts stands beside what was measured. A row `peer` is what most trainers do (diffusers' module,
PEFT, autocast, no compiler), in the same process, for the ratio; `start` is `simpletuner train` from the shell to its
first step with caches that are there. Rows of an earlier call stay in the file. Weights are random; see model.py.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import itertools
import json
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from model import GIB, estimated, write_job, write_model
from watch import Watch, at

WARM = 6  # steps that are not timed: the first runs plain, then the blocks are compiled and the step recorded
CHECKPOINT, NONE = {"gradient_checkpointing": True}, {"gradient_checkpointing": False}
COLUMNS = {
    "seconds": "s/step",
    "device_s": "on the device",
    "reserved_gib": "GiB reserved",
    "driver_gib": "GiB driver",
    "plan_gib": "planned",
    "ram_gib": "RAM GiB",
    "first_step_s": "first step s",
    "loss": "loss, halves",
}
LONG = 200  # steps of the rows where losses are compared
ROWS: dict[str, tuple[int, dict[str, Any]]] = {
    "bf16 512 none": (512, NONE),
    "bf16 512 none, uncompiled": (512, {**NONE, "dynamo_backend": "no"}),
    "bf16 512 ckpt": (512, CHECKPOINT),
    "bf16 1024 none": (1024, NONE),
    "bf16 1024 none, budget 0.97": (1024, {**NONE, "activation_memory_budget": 0.97}),
    "bf16 1024 none, budget 0.9": (1024, {**NONE, "activation_memory_budget": 0.9}),
    "bf16 1024 ckpt": (1024, CHECKPOINT),
    "fp8-compute 1024 none": (1024, {**NONE, "base_model_precision": "fp8-compute"}),
    "fp8-compute 1024 ckpt": (1024, {**CHECKPOINT, "base_model_precision": "fp8-compute"}),
    "fp8-compute 512 none": (512, {**NONE, "base_model_precision": "fp8-compute"}),
    "int8 1024 ckpt": (1024, {**CHECKPOINT, "base_model_precision": "int8-quanto"}),
    "int8 512 ckpt": (512, {**CHECKPOINT, "base_model_precision": "int8-quanto"}),
    "nf4 512 ckpt": (512, {**CHECKPOINT, "base_model_precision": "nf4-bnb"}),
    "nf4 1024 ckpt": (1024, {**CHECKPOINT, "base_model_precision": "nf4-bnb"}),
    "nf4 512 quickstart": (
        512,
        {**CHECKPOINT, "base_model_precision": "nf4-bnb", "optimizer": "bnb-lion8bit-paged", "learning_rate": 1e-5},
    ),
    "bf16 512 streamed": (512, {**CHECKPOINT, "blocks_to_swap": 56}),
    "bf16 1024 streamed": (1024, {**CHECKPOINT, "blocks_to_swap": 56}),
    "nf4 512 streamed": (512, {**CHECKPOINT, "base_model_precision": "nf4-bnb", "blocks_to_swap": 56}),
    "int8 1024 half streamed": (1024, {**CHECKPOINT, "base_model_precision": "int8-quanto", "blocks_to_swap": 28}),
}


def clean() -> None:
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def job(options: argparse.Namespace, size: int, settings: dict[str, Any], steps: int) -> Path:
    cache = options.work / "cache"
    folders = {
        "cache_dir_text": cache / "text",
        "cache_dir_vae": cache / "vae",
        "quantize_cache_dir": cache / "weights",
    }
    own = {name: str(folder) for name, folder in folders.items()} | {"learning_rate": 3e-4} | settings
    return write_job(options.work, size=size, steps=steps, target="all+ffs", **own)


def product(options: argparse.Namespace, name: str, size: int, settings: dict[str, Any]) -> dict[str, Any]:
    """One row: trains and reads what the run wrote about itself."""
    from simpletuner.process import run

    steps = LONG if name in options.long else options.steps
    path = job(options, size, settings, steps)
    clean()
    watch = Watch(lambda: [Path("/proc/self")])
    watch.start()
    started = time.time()
    code = run(path)
    watch.over.set()
    out = Path(json.loads(path.read_text())["output_dir"])
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    if code:
        return {"row": name, "error": str([e["data"] for e in events if e["severity"] == "error"][-1:])[:600]}
    stepped = [e for e in events if e["type"] == "step.done"]
    done = [at(e) for e in stepped]
    losses = [json.loads(line)["values"]["train_loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    half = len(losses) // 2
    most, ram = watch.most(started, done[-1])
    seconds = [b - a for a, b in itertools.pairwise(done[WARM:])]
    return {
        "row": name,
        "size": size,
        "settings": settings,
        "steps": steps,
        "seconds": round(statistics.median(seconds), 4),
        "device_s": round(statistics.median(e["data"]["seconds"] for e in stepped[WARM + 1 :]), 4),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
        "allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "driver_gib": round(most / GIB, 2),
        "steady_gib": round(watch.most(done[WARM], done[-1])[0] / GIB, 2),
        "plan_gib": estimated(path, size)["training"][0],
        "ram_gib": round(ram / GIB, 2),
        "first_step_s": round(done[0] - started, 1),
        "fast_from_s": round(done[WARM] - started, 1),
        "loss": [round(sum(losses[:half]) / half, 4), round(sum(losses[half:]) / (len(losses) - half), 4)],
        "last_losses": [round(loss, 5) for loss in losses[-10:]],
        "finite": all(loss == loss and abs(loss) < 1e6 for loss in losses),
        "said": [e["data"]["message"][:160] for e in events if e["type"] == "log" and e["severity"] != "info"][:4],
    }


def processes() -> list[Path]:
    """Those that `simpletuner train` consists of."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if b"simpletuner." in (process / "cmdline").read_bytes():
                found.append(process)
    return found


def start(options: argparse.Namespace, name: str, kind: str) -> dict[str, Any]:
    """Seconds from the shell to the first step, and the most RAM of all processes together."""
    path = job(options, 1024, {**CHECKPOINT, "base_model_precision": kind}, 2)
    command = [sys.executable, "-m", "simpletuner.cli.main", "train", "--config", str(path)]
    subprocess.run(command, capture_output=True)  # fills the caches
    path = job(options, 1024, {**CHECKPOINT, "base_model_precision": kind}, 2)  # and leaves no result
    clean()
    watch = Watch(processes)
    watch.start()
    started = time.time()
    done = subprocess.run(command, capture_output=True, text=True)
    watch.over.set()
    if done.returncode:
        return {"row": name, "error": done.stderr[-600:]}
    lines = (Path(json.loads(path.read_text())["output_dir"]) / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    first = next(at(e) for e in events if e["type"] == "step.done")
    ram = watch.most(started, time.time())[1]
    return {"row": name, "first_step_s": round(first - started, 1), "ram_gib": round(ram / GIB, 2)}


def peer(options: argparse.Namespace, size: int, checkpointing: bool) -> dict[str, Any]:
    """diffusers and PEFT as most trainers use them, from the same weights."""
    from diffusers import FluxTransformer2DModel
    from peft import LoraConfig

    clean()
    folder = options.work / "model/transformer"
    model = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.bfloat16).to("cuda").requires_grad_(False)
    names = [
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
        "ff.net.0.proj",
    ]
    names += ["ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out"]
    model.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=names))
    if checkpointing:
        model.enable_gradient_checkpointing()
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    tokens = (size // 16) ** 2
    side = size // 16
    ids = torch.zeros(tokens, 3, device="cuda")
    ids[:, 1], ids[:, 2] = torch.arange(tokens, device="cuda") // side, torch.arange(tokens, device="cuda") % side
    given = {
        "hidden_states": torch.randn(1, tokens, 64, device="cuda"),
        "encoder_hidden_states": torch.randn(1, 512, 4096, device="cuda"),
        "pooled_projections": torch.randn(1, 768, device="cuda"),
        "timestep": torch.tensor([0.6], device="cuda"),
        "guidance": torch.ones(1, device="cuda"),
        "img_ids": ids,
        "txt_ids": torch.zeros(512, 3, device="cuda"),
    }
    target = torch.randn(1, tokens, 64, device="cuda")
    times = []
    for _ in range(7):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            out = model(**given, return_dict=False)[0]
        loss = (out.float() - target).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return {
        "row": f"peer {size} {'ckpt' if checkpointing else 'none'}",
        "seconds": round(statistics.median(times[2:]), 4),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
    }


def table(records: list[dict[str, Any]]) -> str:
    lines = ["| Row | " + " | ".join(COLUMNS.values()) + " | |", "|---" * (len(COLUMNS) + 2) + "|"]
    for r in records:
        cells = [str(r.get(key, "")) for key in COLUMNS]
        said = "failed: " + r["error"][:200] if "error" in r else "; ".join(r.get("said", []))[:200]
        lines.append(f"| {r['row']} | " + " | ".join(cells) + f" | {said} |")
    return "\n".join(lines)


def earlier(file: Path) -> dict[str, dict[str, Any]]:
    """Rows of an earlier call, by name; each says itself when and on what it was measured."""
    return {r["row"]: r for r in json.loads(file.read_text())["rows"]} if file.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder on a fast disk with 60 GB free")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=["*"], help='patterns of rows; "peer 1024 ckpt" is the peer')
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--long", nargs="*", default=[], help=f"rows that run {LONG} steps")
    parser.add_argument("--seconds", type=float, default=540, help="no row is begun after that")
    options = parser.parse_args()
    begun = time.monotonic()
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    write_model(options.work / "model")
    print(f"the model is there after {time.monotonic() - begun:.0f} s", flush=True)
    records = earlier(options.out / "engine.json")
    peers = {f"peer {size} {word}": (size, word == "ckpt") for size in (512, 1024) for word in ("none", "ckpt")}
    starts = {f"start {kind}": kind for kind in ("int8-quanto", "nf4-bnb", "fp8-compute")}
    for name in (n for pattern in options.rows for n in fnmatch.filter([*ROWS, *peers, *starts], pattern)):
        if time.monotonic() - begun > options.seconds:
            break
        if name in peers:
            record = peer(options, *peers[name])
        elif name in starts:
            record = start(options, name, starts[name])
        else:
            record = product(options, name, *ROWS[name])
        print(f"{time.monotonic() - begun:.0f} s", json.dumps(record), flush=True)
        where = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "date": f"{datetime.now():%F %R}"}
        records[name] = record | where
        facts = {"rows": list(records.values())}
        (options.out / "engine.json").write_text(json.dumps(facts, indent=1) + "\n")
    text = table(list(records.values()))
    (options.out / "engine.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
