"""How fast this machine has been: rates of finished runs, kept in one small file, and guesses where there are none."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from simpletuner import newfile
from simpletuner.config import Config
from simpletuner.events import read_lines
from simpletuner.machine import state_dir
from simpletuner.memory.options import Memory
from simpletuner.models.options import Model
from simpletuner.plan.work import Work
from simpletuner.training.options import Speed, Training

KEPT = 200  # settings; the oldest goes first
# Dense 16-bit operations a second, in 10^12, from the makers' data sheets; the first that names it counts.
PEAKS = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "RTX PRO 6000": 500, "L40S": 362, "L40": 181,
    "RTX 6000 Ada": 364, "A6000": 155, "A40": 150, "A10": 125, "L4": 121, "V100": 125, "T4": 65, "RTX 5090": 209,
    "RTX 5080": 113, "RTX 4090": 165, "RTX 4080": 97, "RTX 4070": 58, "RTX 3090": 71, "RTX 3080": 60,
}  # fmt: skip
SHARES = (0.12, 0.5)  # of the peak that training reaches, lowest and highest
BLOCK = (1e-3, 5e-3)  # seconds that launching one block's kernels takes a CPU, for each pass; 4e-3 beside an H100
CORE = (3e9, 60e9)  # operations a second of one CPU core


@dataclass(frozen=True)
class Setting:
    """What a rate was measured with."""

    device: str
    flavour: str
    precision: str  # of computation and base
    resolution: str  # of the batches, on average, in megapixels
    batch: int


@dataclass(frozen=True)
class Rates:
    """Operations a second by kind of work; None: never measured."""

    step: float | None = None
    image: float | None = None
    text: float | None = None
    latent: float | None = None


def setting(config: Config, device: str, pixels: float) -> Setting:
    """pixels: of a batch's pictures, on average."""
    precision = config[Speed].mixed_precision
    return Setting(
        device=device,
        flavour=config[Model].model_flavour,
        precision=f"{precision}/{config[Memory].storage(precision)}/{config[Model].model_type}",
        resolution=f"{pixels / 1e6:.3f}",
        batch=config[Training].train_batch_size,
    )


def path(environ: Mapping[str, str] = os.environ) -> Path:
    return state_dir(environ) / "rates.json"


def learn(wanted: Setting, work: Work, output_dir: Path, attempt: int) -> None:
    """Keeps the rates of a run that has ended, from its metrics and events. A file that cannot be written is let be."""
    measured = _measured(work, output_dir, attempt)
    records = [record for record in _records() if _setting(record) != wanted]
    records.append(asdict(wanted) | {name: rate for name, rate in asdict(measured).items() if rate})
    with suppress(OSError):
        newfile.replace(path(), json.dumps(records[-KEPT:], indent=1).encode())


def known(wanted: Setting) -> tuple[Rates, str]:
    """The best rates on record and, in words, what they come from; ("" if there are none)."""
    records = [(found, record) for record in reversed(_records()) if (found := _setting(record))]
    same = [record for found, record in records if found == wanted]
    if same:
        return _rates(same), "measured here with these settings"
    like = [
        record
        for found, record in records
        if (found.device, found.flavour, found.precision) == (wanted.device, wanted.flavour, wanted.precision)
    ]
    return (_rates(like), "measured here at another size") if like else (Rates(), "")


def guess(device: str, cores: int) -> tuple[float, float] | None:
    """(lowest, highest) operations a second where nothing was measured; None for a device that nobody described."""
    peak = next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", device)), None)
    if peak:
        return peak * 1e12 * SHARES[0], peak * 1e12 * SHARES[1]
    return (CORE[0] * cores, CORE[1] * cores) if device == "CPU" else None


def _records() -> list[dict[str, Any]]:
    try:
        found = json.loads(path().read_text("utf-8"))
    except (OSError, ValueError):  # absent or torn: only knowledge is lost
        return []
    return [record for record in found if isinstance(record, dict)] if isinstance(found, list) else []


def _setting(record: Mapping[str, Any]) -> Setting | None:
    names = [field.name for field in fields(Setting)]
    return Setting(**{name: record[name] for name in names}) if all(name in record for name in names) else None


def _rates(records: Iterable[Mapping[str, Any]]) -> Rates:
    """The first value of each kind."""
    found: dict[str, float] = {}
    for record in records:
        for field in fields(Rates):
            value = record.get(field.name)
            if isinstance(value, (int, float)) and value > 0:
                found.setdefault(field.name, float(value))
    return Rates(**found)


def _measured(work: Work, output_dir: Path, attempt: int) -> Rates:
    lines = [line for line in read_lines(output_dir / "metrics.jsonl") if line.get("attempt") == attempt]
    seconds = lines[-1]["values"].get("seconds_per_step") if lines else None
    events = [event for event in read_lines(output_dir / "events.jsonl") if event.get("attempt") == attempt]
    shown = [event["data"] for event in events if event["type"] == "validation.finished"]
    images, taken = sum(one["images"] for one in shown), sum(one["seconds"] for one in shown)
    return Rates(
        step=work.step / seconds if seconds else None,
        image=work.image * images / taken if images and taken else None,
        text=_cached(events, "text", work.text),
        latent=_cached(events, "vae", work.latent),
    )


def _cached(events: Iterable[Mapping[str, Any]], kind: str, each: float) -> float | None:
    """Operations a second while a cache was filled, loading included; None if nothing was encoded."""
    items, seconds = 0, 0.0
    begun: dict[str, tuple[int, datetime]] = {}
    for event in events:
        data = event["data"]
        if event["type"] != "cache.progress" or data["kind"] != kind:
            continue
        time = datetime.fromisoformat(event["time"].replace("Z", "+00:00"))
        first, since = begun.setdefault(data["dataset"], (data["done"], time))
        if data["done"] >= data["total"] > first:
            items, seconds = items + data["done"] - first, seconds + (time - since).total_seconds()
            begun[data["dataset"]] = (data["done"], time)
    return each * items / seconds if items and seconds else None
