"""What the dataloader takes on this machine: scanning, planning and reading, each in a process of its own.

    python benchmarks/data.py --work /a/folder/on/disk --out benchmarks/results

Peak memory is that of the measuring process, imports included. Files are in the system's cache when they are read,
since they have just been written.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCANS = (10_000, 30_000, 100_000)  # small JPEG files
SAMPLES, BUCKETS, BATCH = 1_000_000, 200, 4  # of one planned epoch
ITEMS, READ = 512, 20_000  # cached latents (16, 64, 64) in bf16, and how many are read


def write_pictures(folder: Path, count: int) -> None:
    """Small JPEG files of some sizes, in folders of a thousand."""
    from PIL import Image

    kinds = []
    for number in range(64):
        buffer = io.BytesIO()
        Image.new("RGB", (64 + 8 * (number % 8), 64 + 8 * (number // 8)), (number, 90, 160)).save(buffer, "jpeg")
        kinds.append(buffer.getvalue())
    for number in range(count):
        path = folder / f"{number // 1000:04d}/picture {number}.jpg"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(kinds[number % len(kinds)])


def survey(work: Path, name: str, options: Any, **settings: Any) -> tuple[Any, float]:
    """The pictures of that name as a run opens them, and the seconds that it took."""
    from simpletuner.data import datasets, library
    from simpletuner.events import EventLog

    entry = {
        "id": "many",
        "type": "local",
        "instance_data_dir": str(work / f"pictures-{name}"),
        "minimum_image_size": 0,
    }
    file = work / f"data-{name}.json"
    file.write_text(json.dumps([entry | settings]))
    found, problems = datasets.load(file, options, family="flux", alignment=16, output_dir=work / f"out-{name}")
    assert found, problems
    begun = time.perf_counter()
    opened = library.open_library(found, options, batch_size=1, accumulation=1, ranks=1, events=EventLog(None))
    return opened, time.perf_counter() - begun


def scan(work: Path, count: str) -> dict[str, Any]:
    """A survey of a folder, as every start makes one: the first time, or again when nothing has changed."""
    from simpletuner.data.options import Data

    opened, seconds = survey(work, count, Data(resolution=64))
    (shelf,) = opened.shelves
    assert len(shelf.items) == int(count), shelf.scan.reasons()
    opened.close()
    return {"seconds": seconds, "headers_read": shelf.scan.headers_read}


def plan(work: Path, _: str) -> dict[str, Any]:
    from simpletuner.data.sampling import Pool, plan_epoch

    each = SAMPLES // BUCKETS
    buckets = {str(b): [f"many/{b}/picture {n}.jpg" for n in range(each)] for b in range(BUCKETS)}
    pool = Pool("many", buckets, BATCH)
    begun = time.perf_counter()
    made = plan_epoch([pool], seed=42, epoch=1)
    seconds = time.perf_counter() - begun
    assert len(made.batches) == SAMPLES // BATCH
    return {"seconds": seconds}


def load(work: Path, _: str) -> dict[str, Any]:
    """Batches of cached latents as the loader hands them over, texts included: 8 captions, so they stay in memory."""
    import torch

    from simpletuner.data.cache import TensorCache
    from simpletuner.data.fill import Latents
    from simpletuner.data.keys import text_key
    from simpletuner.data.loader import Loader
    from simpletuner.data.options import Data
    from simpletuner.types import Progress

    options = Data(resolution=64, caption_dropout_probability=0.0)
    if not (work / "pictures-load").exists():
        write_pictures(work / "pictures-load", ITEMS)
    prompts = [f"a thing {n}" for n in range(8)]
    opened, _seconds = survey(work, "load", options, caption_strategy="instanceprompt", instance_prompt=prompts)
    (shelf,) = opened.shelves
    cache, texts = (TensorCache.at(work / f"cache-{kind}", "0" * 64, kind) for kind in ("vae", "text"))
    keys = {item.sample.id: f"{number:064x}" for number, item in enumerate(shelf.items)}
    for key in cache.missing(keys.values()):
        cache.write(key, {"latent": torch.randn(16, 64, 64).bfloat16()})
    wanted = {text_key(caption, "0" * 64): caption for caption in opened.captions()}
    for key in texts.missing(wanted):
        texts.write(key, {"embeds": torch.randn(512, 4096).bfloat16(), "pooled": torch.randn(768).bfloat16()})
    latents = {"many": Latents(cache, keys)}
    loader = Loader(opened, latents, texts, options=options, seed=1, progress=Progress(epoch=1, position=0, samples=0))
    for _turn in range(100):
        loader.next()
    begun = time.perf_counter()
    for _turn in range(READ):
        loader.next()
    seconds = time.perf_counter() - begun
    loader.close()
    opened.close()
    return {"seconds": seconds, "items_per_second": round(READ / seconds)}


PARTS: dict[str, Callable[[Path, str], dict[str, Any]]] = {"scan": scan, "rescan": scan, "plan": plan, "load": load}


def apart(options: argparse.Namespace, part: str, word: str) -> dict[str, Any]:
    """One measurement in a fresh process."""
    command = [sys.executable, __file__, "--work", str(options.work), "--part", part, "--of", word]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return {"part": part, "of": word} | json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder with room for 500 MB in 100,000 files")
    parser.add_argument("--out", type=Path, help="where data.json goes")
    parser.add_argument("--part", choices=PARTS, help="measure one part in this process")
    parser.add_argument("--of", default="")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.part:
        record = PARTS[options.part](options.work, options.of)
        record["seconds"] = round(record["seconds"], 2)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(record | {"peak_mb": round(peak / 1e6)}))
        return
    records = []
    for count in SCANS:
        if not (options.work / f"pictures-{count}").exists():
            write_pictures(options.work / f"pictures-{count}", count)
        shutil.rmtree(options.work / f"out-{count}", ignore_errors=True)  # the index of an earlier call
        records += [apart(options, part, str(count)) for part in ("scan", "rescan")]
        print(json.dumps(records[-2:]), flush=True)
    for part in ("plan", "load"):
        records.append(apart(options, part, ""))
        print(json.dumps(records[-1]), flush=True)
    if options.out:
        facts = {"cores": os.cpu_count(), "rows": records}
        (options.out / "data.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
