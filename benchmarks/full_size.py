"""Trains a LoRA on a Flux of the true size through `simpletuner train`; reports seconds per step and peak memory.

    python benchmarks/full_size.py --work /fast/disk --out benchmarks/results

Weights are random (19 + 38 blocks, 11.9 G parameters, sharded safetensors); VAE and text encoders are small random
ones that give latents and embeddings of the true shapes. The product's own loader, caches and trainer do the rest.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from simpletuner.examples import EXAMPLES

TRANSFORMER = {
    "_class_name": "FluxTransformer2DModel",
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}
ENCODERS = ("text_encoder", "text_encoder_2")
SHARD_BYTES = 4_000_000_000
WARM_STEPS = 5  # not timed: allocator and autotuning settle


def write_transformer(folder: Path, device: str) -> None:
    """Random weights of the true shapes, small and normal, never zeros."""
    from diffusers import FluxTransformer2DModel

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(TRANSFORMER))
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(TRANSFORMER)
    generator = torch.Generator(device).manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in model.state_dict().items():
        if sum(t.nbytes for t in shards[-1].values()) + tensor.numel() * 2 > SHARD_BYTES:
            shards.append({})
        spread = 0.02 if tensor.ndim > 1 else 0.01
        value = torch.randn(tensor.shape, generator=generator, device=device) * spread
        if name.endswith(("norm_q.weight", "norm_k.weight", "norm_added_q.weight", "norm_added_k.weight")):
            value += 1
        shards[-1][name] = value.bfloat16().cpu()
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"diffusion_pytorch_model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file)
        index |= dict.fromkeys(shard, file)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )


def write_small_parts(folder: Path) -> None:
    """Encoders and VAE that are small but have Flux's output shapes: T5 4096, CLIP 768, 16 channels at 1/8."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    nano = EXAMPLES["nano"].folder / "model"
    for part in ("tokenizer", "tokenizer_2", "scheduler"):
        shutil.copytree(nano / part, folder / part)
    shutil.copyfile(nano / "model_index.json", folder / "model_index.json")
    words = {part: json.loads((nano / part / "config.json").read_text())["vocab_size"] for part in ENCODERS}
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        block_out_channels=(16, 16, 16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).save_pretrained(folder / "vae")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words["text_encoder"],
            hidden_size=768,
            intermediate_size=768,
            num_hidden_layers=1,
            num_attention_heads=12,
        )
    ).save_pretrained(folder / "text_encoder")
    T5EncoderModel(
        T5Config(
            vocab_size=words["text_encoder_2"],
            d_model=4096,
            d_kv=64,
            d_ff=1024,
            num_layers=1,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    ).save_pretrained(folder / "text_encoder_2")


def write_job(work: Path, options: argparse.Namespace) -> Path:
    """Pictures, dataset list and configuration; returns the latter."""
    pictures = work / "pictures"
    pictures.mkdir(exist_ok=True)
    for number in range(8):
        noise = torch.randint(0, 256, (options.size, options.size, 3), generator=torch.Generator().manual_seed(number))
        Image.fromarray(noise.byte().numpy()).save(pictures / f"a picture of thing {number}.png")
    datasets = [{"id": "random", "type": "local", "instance_data_dir": str(pictures), "resolution": options.size}]
    (work / "multidatabackend.json").write_text(json.dumps(datasets))
    config = {
        "model_flavour": "dev",
        "pretrained_model_name_or_path": str(work / "model"),
        "output_dir": str(work / "out"),
        "data_backend_config": str(work / "multidatabackend.json"),
        "resolution": options.size,
        "lora_rank": 16,
        "flux_lora_target": options.target,
        "max_train_steps": options.steps,
        "mixed_precision": "bf16",
        "gradient_checkpointing": not options.no_checkpointing,
        "validation_disable": True,
        "checkpoint_step_interval": 10_000,
    }
    path = work / "config.json"
    path.write_text(json.dumps(config))
    return path


def report(output_dir: Path, facts: dict, out: Path) -> None:
    """Reads the run's own metrics and writes the table."""
    lines = [json.loads(line)["values"] for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    events = [json.loads(line) for line in (output_dir / "events.jsonl").read_text().splitlines()]
    seconds = [e["data"]["seconds"] for e in events if e["type"] == "step.done"][WARM_STEPS:]
    losses = [v["train_loss"] for v in lines]
    record = facts | {
        "steps": len(lines),
        "seconds_per_step_median": round(statistics.median(seconds), 4),
        "seconds_per_step_min": round(min(seconds), 4),
        "peak_allocated_gib": round(max(v.get("vram_peak_bytes", 0) for v in lines) / 2**30, 2),
        "rss_gib": round(max(v["rss_bytes"] for v in lines) / 2**30, 2),
        "data_wait_seconds_median": round(statistics.median(v["data_wait_seconds"] for v in lines), 5),
        "loss_first": round(losses[0], 4),
        "loss_last": round(losses[-1], 4),
        "all_losses_finite": all(v == v for v in losses),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "full_size.json").write_text(json.dumps(record, indent=2) + "\n")
    table = ["| Figure | Value |", "|---|---|", *(f"| {key} | {value} |" for key, value in record.items())]
    (out / "full_size.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder on a fast disk with 30 GB free")
    parser.add_argument("--out", type=Path, required=True, help="where the table goes")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--target", default="all+ffs")
    parser.add_argument("--no-checkpointing", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.monotonic()
    if not (options.work / "model").exists():
        write_transformer(options.work / "model/transformer", device)
        write_small_parts(options.work / "model")
        print(f"wrote the model in {time.monotonic() - started:.0f} s", flush=True)
    if device == "cuda":
        torch.cuda.empty_cache()
    started = time.monotonic()
    shutil.rmtree(options.work / "out", ignore_errors=True)
    config = write_job(options.work, options)
    subprocess.run([sys.executable, "-m", "simpletuner.cli.main", "train", "--config", str(config)], check=True)
    facts = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "size": f"{options.size}x{options.size}",
        "targets": options.target,
        "gradient_checkpointing": not options.no_checkpointing,
        "seconds_in_all": round(time.monotonic() - started, 1),
    }
    report(options.work / "out", facts, options.out)


if __name__ == "__main__":
    main()
