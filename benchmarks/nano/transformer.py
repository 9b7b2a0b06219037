"""Part three: the product itself trains the transformer, `model_type: full`, on pictures with captions in a folder."""

import json
import logging
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.nano.pictures import Art, Item, captions, items, pixels

BATCH = 128
PEAK_RATE = 3e-4
NUM_STEPS = 3000

log = logging.getLogger("nano")


def chosen(art: Art) -> list[Item]:
    """Each subject in every style on white, and in the drawn styles on one more ground."""
    white = [item for item in items(art) if item.ground == "white"]
    coloured = [item for item in items(art) if item.ground != "white"]
    random.Random(0).shuffle(coloured)
    one_each = {(item.subject, item.style): item for item in coloured}
    return white + list(one_each.values())


def write_pictures(folder: Path, art: Art) -> int:
    """PNG files, each beside a caption; returns their number."""
    folder.mkdir(parents=True)
    wanted = chosen(art)
    draw = random.Random(1)

    def write(i: int, picture: np.ndarray, item: Item) -> None:
        Image.fromarray(picture).save(folder / f"{i:05}.png", compress_level=1)
        (folder / f"{i:05}.txt").write_text(draw.choice(captions(art, item)) + "\n", encoding="utf-8")

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(wanted), 2048):
            part = wanted[start : start + 2048]
            x = pixels(art, part, torch.device("cpu")).permute(0, 2, 3, 1)
            arrays = ((x + 1) * 127.5).round().to(torch.uint8).numpy()
            list(pool.map(write, range(start, start + len(part)), arrays, part))
    return len(wanted)


def configuration(work: Path, base: Path, num_steps: int, gpu: bool) -> dict[str, object]:
    """As a user would write it."""
    return {
        "model_type": "full",
        "model_flavour": "nano",
        "pretrained_model_name_or_path": str(base),
        "output_dir": str(work / "run"),
        "data_backend_config": str(work / "multidatabackend.json"),
        "resolution": 64,
        "mixed_precision": "bf16" if gpu else "no",
        "base_model_default_dtype": "fp32",
        "vae_dtype": "fp32",
        "gradient_checkpointing": False,
        "optimizer": "torch-adamw",
        "learning_rate": PEAK_RATE,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": min(100, num_steps // 10),
        "max_train_steps": num_steps,
        "train_batch_size": BATCH,
        "flux_guidance_mode": "random-range",
        "flux_guidance_min": 1.0,
        "flux_guidance_max": 5.0,
        "caption_dropout_probability": 0.1,
        "checkpoint_step_interval": 1000,
        "checkpoints_total_limit": 1,
        "validation_disable": True,
    }


def train(work: Path, base: Path, art: Art, num_steps: int = NUM_STEPS) -> Path:
    """Trains until done, from the last checkpoint if there is one; returns the folder of the whole pipeline."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "multidatabackend.json").exists():
        shutil.rmtree(work / "pictures", ignore_errors=True)
        log.info("transformer: %d pictures written", write_pictures(work / "pictures", art))
        datasets = [
            {
                "id": "emoji", "type": "local", "instance_data_dir": str(work / "pictures"),
                "caption_strategy": "textfile", "resolution": 64, "crop": True, "crop_aspect": "square",
                "cache_dir_vae": str(work / "cache"), "vae_batch_size": 128,
            },
            {
                "id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True,
                "cache_dir": str(work / "texts"), "text_encoder_batch_size": 256,
            },
        ]  # fmt: skip
        (work / "multidatabackend.json").write_text(json.dumps(datasets, indent=1), encoding="utf-8")
    config = configuration(work, base, num_steps, torch.cuda.is_available())
    (work / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    command = [sys.executable, "-m", "simpletuner.cli.main", "train", "--config", str(work / "config.json")]
    subprocess.run(command, check=True)
    return work / "run" / "pipeline"
