"""Runs the product on a Flux of the true size, part by part, and sets the measured peaks beside the plan's estimate.

    python benchmarks/memory.py --work /fast/disk --out benchmarks/results

Weights are random, of the published shapes: transformer 11.9 G, T5 4.8 G, CLIP, VAE. The driver is asked again and
again how much memory of the GPU is in use; events tell which phase it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from model import GIB, estimated, write_job, write_model
from safetensors.torch import save_file
from watch import Watch, at

VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 16, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32,
    "sample_size": 1024, "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False,
    "use_post_quant_conv": False,
}  # fmt: skip
T5 = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
      "feed_forward_proj": "gated-gelu"}  # fmt: skip
CLIP = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "projection_dim": 768}  # fmt: skip
WATCHED = {"validation_disable": False, "validation_prompt": "a thing", "validation_num_inference_steps": 2}
RUNS = (  # size, batch, settings; the first fills the text cache, so that the others show the image cache alone
    (512, 1, {**WATCHED, "validation_resolution": "512x512"}),
    (1024, 1, {**WATCHED, "validation_resolution": "1024x1024"}),
    (768, 1, {**WATCHED, "vae_batch_size": 1, "validation_resolution": "1280x768", "flux_lora_target": "mmdit"}),
    (512, 1, {"gradient_checkpointing": False}),
    (1024, 1, {"gradient_checkpointing": False}),
    (1024, 1, {"flux_lora_target": "all+ffs"}),
    (512, 4, {"flux_lora_target": "all+ffs", "optimizer": "torch-adamw", "gradient_checkpointing": False}),
    (1024, 2, {"flux_lora_target": "all+ffs", "gradient_checkpointing_interval": 3, "lora_rank": 128}),
)


def write_encoders(folder: Path, device: str) -> None:
    """T5 XXL and CLIP L of random bf16 weights, and Flux's VAE."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    shutil.rmtree(folder / "vae")
    torch.manual_seed(0)
    AutoencoderKL(**VAE).to(torch.bfloat16).save_pretrained(folder / "vae")
    for part, kind, config in (
        ("text_encoder", CLIPTextModel, CLIPTextConfig(**CLIP)),
        ("text_encoder_2", T5EncoderModel, T5Config(**T5)),
    ):
        with torch.device("meta"):
            names = {k: v.shape for k, v in kind(config).state_dict().items() if k != "encoder.embed_tokens.weight"}
        shutil.rmtree(folder / part)
        config.dtype = "bfloat16"
        config.architectures = [kind.__name__]
        config.save_pretrained(folder / part)
        state = {k: (torch.randn(s, device=device) * 0.02).to("cpu", torch.bfloat16) for k, s in names.items()}
        save_file(state, folder / part / "model.safetensors", {"format": "pt"})


def trainers() -> list[Path]:
    """The trainer's processes."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if b"simpletuner.recipe" in (process / "cmdline").read_bytes():
                found.append(process)
    return found


def phases(events: list[dict], watch: Watch, idle: int) -> dict[str, list[float]]:
    """GiB of the GPU above what was in use before, and of RAM, at the peak of each phase that did something."""
    found: dict[str, tuple[int, int]] = {}
    last = min(map(at, events))
    for name, wanted in (
        ("text cache", lambda e: e["data"].get("kind") == "text"),
        ("image cache", lambda e: e["data"].get("kind") == "vae"),
        ("validation", lambda e: e["type"] in ("validation.started", "validation.finished")),
        ("training", lambda e: e["type"] == "step.done"),
    ):
        chosen = [e for e in events if wanted(e)]
        times = [at(e) for e in chosen]
        worked = any(e["data"].get("hits") != e["data"].get("total") or "hits" not in e["data"] for e in chosen)
        hidden = name == "image cache" and "text cache" in found  # by the encoders, which left just before
        if times and (hidden or not worked):
            last = times[-1]
        elif times:  # a cache's phase begins before its first report: with the loading of its encoder
            found[name] = watch.most(min(times[0], last) if "cache" in name else times[0], times[-1])
            last = times[-1]
    return {key: [round((used - idle) / GIB, 2), round(ram / GIB, 2)] for key, (used, ram) in found.items()}


def one(options: argparse.Namespace, size: int, batch: int, settings: dict) -> dict:
    """Trains a few steps and returns what was measured and what was estimated."""
    caches = {f"cache_dir_{kind}": str(options.work / "cache" / kind) for kind in ("text", "vae")}
    own = {"train_batch_size": batch, **caches, **settings}
    path = write_job(options.work, size=size, steps=options.steps, target="all", **own)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    watch = Watch(trainers)
    watch.start()
    command = [sys.executable, "-m", "simpletuner.cli.main", "train", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    watch.over.set()
    watch.join()
    if done.returncode:
        raise SystemExit(done.stdout[-1500:] + done.stderr[-1500:])
    lines = [json.loads(line) for line in (options.work / "out/events.jsonl").read_text().splitlines()]
    metrics = [json.loads(line)["values"] for line in (options.work / "out/metrics.jsonl").read_text().splitlines()]
    record = {"size": size, "batch": batch, "settings": settings, "measured": phases(lines, watch, total - free)}
    record["allocated"] = round(max(m["vram_peak_bytes"] for m in metrics) / GIB, 2)
    record["rss"] = round(max(m["rss_bytes"] for m in metrics) / GIB, 2)
    record["seconds"] = [round(e["data"]["seconds"], 3) for e in lines if e["type"] == "step.done"][-1]
    record["estimated"] = estimated(path, size)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder on a fast disk with 40 GB free")
    parser.add_argument("--out", type=Path, required=True, help="where memory.json goes")
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if not (options.work / "model").exists():
        started = time.monotonic()
        write_model(options.work / "model")
        write_encoders(options.work / "model", "cuda")
        print(f"wrote the model in {time.monotonic() - started:.0f} s", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    records = []
    for size, batch, settings in RUNS:
        records.append(one(options, size, batch, settings))
        print(json.dumps(records[-1]), flush=True)
        facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "runs": records}
        (options.out / "memory.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
