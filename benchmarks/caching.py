"""How fast caches are made: the VAE and text encoders of the true size alone, and the product's own fill around them.

    python benchmarks/caching.py --work /fast/disk --out benchmarks/results

`encoder` is the part by itself on batches that are ready on the device; `fill` is what `simpletuner cache build` does
with files, from its second report to its last; `decode` is reading and preparing the pictures without an encoder.
Weights are random, and the pictures are noise over smooth colours, as large on disk as photographs are.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model import write_encoders, write_small_parts, write_transformer
from PIL import Image
from watch import at

PICTURES, CAPTIONS, DRAWN = 384, 512, 8
SIZES = {"1024x1024": (1024, 1024), "4032x3024": (4032, 3024)}  # width, height of the files; all become 1024x1024
FEWER = 3  # times fewer of the large ones
WARM, RUNS = 2, 10  # batches of the encoder by itself


def write_pictures(folder: Path, size: tuple[int, int], count: int) -> None:
    """DRAWN pictures, again and again with another last byte, so that each counts as one of its own."""
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(0)
    width, height = size
    kinds = []
    for _ in range(DRAWN):
        small = drawn.integers(0, 256, (height // 64 + 1, width // 64 + 1, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC), np.int16)
        grain = drawn.integers(-6, 7, (height, width, 1), dtype=np.int16)
        buffer = io.BytesIO()
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=92)
        kinds.append(buffer.getvalue())
    for number in range(count):
        (folder / f"picture {number}.jpg").write_bytes(kinds[number % DRAWN] + number.to_bytes(4, "big"))


def configuration(work: Path, entry: dict[str, Any], **settings: Any) -> Path:
    """A configuration whose caches are empty."""
    datasets = [{"id": "many", "type": "local", "resolution": 1024, "crop": True, "crop_style": "center"} | entry]
    (work / "multidatabackend.json").write_text(json.dumps(datasets))
    shutil.rmtree(work / "out", ignore_errors=True)
    config = {
        "model_flavour": "dev",
        "pretrained_model_name_or_path": str(work / "model"),
        "output_dir": str(work / "out"),
        "data_backend_config": str(work / "multidatabackend.json"),
        "mixed_precision": "bf16",
        "max_train_steps": 1,
        "validation_disable": True,
        **settings,
    }
    path = work / "config.json"
    path.write_text(json.dumps(config))
    return path


def built(path: Path, kind: str, act: Callable[[Any], Any] | None = None) -> tuple[list[tuple[float, int]], Any]:
    """(when, items done) of each report while the caches of one kind are made; then `act(run)` with what made them."""
    from simpletuner import encoding, process

    reports: list[tuple[float, int]] = []
    found: list[Any] = []

    def job(checked: Any, events: Any) -> str:
        def note(event: Any) -> None:
            if event.type == "cache.progress" and event.data["kind"] == kind:
                reports.append((at({"time": event.time}), event.data["done"]))

        events.subscribe(note)
        said = encoding.encode(checked, events, only=kind)  # type: ignore[arg-type]
        if act:
            run = process.new_run(checked, events)
            run.family = run.load_family()
            found.append(act(run))
        return said

    assert process.run(path, job=job) == 0
    return reports, found[0] if found else None


def rate(reports: list[tuple[float, int]]) -> float:
    """Items a second, from the second report on: before it the encoder is loaded and its kernels are chosen."""
    (begin, before), (end, after) = reports[2], reports[-1]
    return (after - before) / (end - begin)


def alone(encode: Callable[[], Any], count: int) -> float:
    """Items a second of calls that take `count` each."""
    times = []
    for _ in range(WARM + RUNS):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        encode()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return count / float(np.median(times[WARM:]))


def vae_alone(batch: int, run: Any) -> float:
    vae = run.family.load_vae(run.device)
    pixels = torch.rand(batch, 3, 1024, 1024, device=run.device) * 2 - 1
    noise = torch.randn(batch, 16, 128, 128, device=run.device)
    with torch.no_grad():
        return alone(lambda: run.family.encode_images(vae, pixels, noise), batch)


def text_alone(captions: list[str], run: Any) -> float:
    encoders = run.family.load_text_encoders(run.device)
    return alone(lambda: run.family.encode_text(encoders, captions), len(captions))


def pictures(work: Path, name: str, batch: int) -> list[dict[str, Any]]:
    from simpletuner.data.ahead import ahead, threads
    from simpletuner.data.pictures import prepare
    from simpletuner.types import Placement, Size

    folder, count = work / f"pictures-{name}", PICTURES if name == "1024x1024" else PICTURES // FEWER
    if not folder.exists():
        write_pictures(folder, SIZES[name], count)
    files = sorted(folder.iterdir())
    width, height = SIZES[name]
    wide = round(1024 * width / height)
    placement = Placement(Size(1024, wide), (0, (wide - 1024) // 2), Size(1024, 1024))
    begun = time.perf_counter()
    jobs = ahead(files, lambda file: prepare(file.read_bytes(), placement), workers=threads(32), limit=32)
    decoded = sum(1 for _ in jobs) / (time.perf_counter() - begun)
    entry = {"instance_data_dir": str(folder), "crop_aspect": "square", "vae_batch_size": batch}
    path = configuration(work, entry, cache_dir_vae=str(work / "cache" / f"vae-{name}-{batch}"))
    shutil.rmtree(work / "cache" / f"vae-{name}-{batch}", ignore_errors=True)
    reports, encoder = built(path, "vae", partial(vae_alone, batch))
    megabytes = sum(file.stat().st_size for file in files) / count / 1e6
    row = {"what": "latents", "of": f"{name}, {megabytes:.1f} MB each", "batch": batch, "items": count}
    return [row | {"decode": round(decoded, 1), "encoder": round(encoder, 2), "fill": round(rate(reports), 2)}]


def texts(work: Path, batch: int) -> list[dict[str, Any]]:
    folder = work / "pictures-captions"
    if not folder.exists():
        folder.mkdir()
        Image.new("RGB", (1024, 1024)).save(folder / "one.png")
    prompts = [f"a picture of thing number {n}, in the light of an evening in autumn" for n in range(CAPTIONS)]
    entry = {"instance_data_dir": str(folder), "caption_strategy": "instanceprompt", "instance_prompt": prompts}
    cache = work / "cache" / f"text-{batch}"
    shutil.rmtree(cache, ignore_errors=True)
    path = configuration(work, entry, cache_dir_text=str(cache), text_encoder_batch_size=batch)
    reports, encoder = built(path, "text", partial(text_alone, prompts[:batch]))
    row = {"what": "texts", "of": "512 tokens, T5-XXL", "batch": batch, "items": CAPTIONS}
    return [row | {"encoder": round(encoder, 2), "fill": round(rate(reports), 2)}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder on a fast disk with 20 GB free")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    if not (work / "model").exists():
        write_transformer(work / "model/transformer", "cuda", num_layers=1, num_single_layers=1)
        write_small_parts(work / "model")
        write_encoders(work / "model", "cuda")
    rows: list[dict[str, Any]] = []
    for make in (
        partial(pictures, work, "1024x1024", 1),
        partial(pictures, work, "1024x1024", 4),
        partial(pictures, work, "4032x3024", 4),
        partial(texts, work, 1),
        partial(texts, work, 8),
    ):
        for row in make():
            row["share"] = round(row["fill"] / row["encoder"], 3)
            print(json.dumps(row), flush=True)
            rows.append(row)
    where = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "date": f"{datetime.now():%F %R}"}
    facts = {**where, "cores": os.cpu_count(), "rows": rows}
    (options.out / "caching.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
