"""What the world is told about an update: its metrics, its event, and the images behind a number that is not finite."""

from __future__ import annotations

import math
import os
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from simpletuner.events import EventLog
from simpletuner.training.nonfinite import NonFinite

LOSS_MEMORY = 0.98  # of loss_ema


def resident_bytes() -> int:
    """Host memory of this process; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Account:
    """Turns the numbers of an update into metrics and events, under the names of outputs.md section 9."""

    def __init__(
        self,
        events: EventLog,
        metrics: Callable[[int, dict[str, float]], None],
        nonfinite: NonFinite,
        total_steps: int,
    ):
        self.events, self.metrics, self.nonfinite, self.total_steps = events, metrics, nonfinite, total_steps
        self.loss_ema: float | None = None
        self.durations: deque[float] = deque(maxlen=50)  # seconds, without saving and validating

    def report(self, window: Any, norm: float, largest: float, losses: Sequence[float]) -> None:
        """Metrics and `step.done` of one update. Numbers that are not finite are left out."""
        after, loss = window.after, mean(losses)
        self.durations.append(window.seconds)
        seconds = median(self.durations)
        samples = sum(len(batch.ids) for batch in window.batches)
        if math.isfinite(loss):
            before = loss if self.loss_ema is None else self.loss_ema
            self.loss_ema = LOSS_MEMORY * before + (1 - LOSS_MEMORY) * loss
        values = {
            "train_loss": loss,
            "loss_ema": math.nan if self.loss_ema is None else self.loss_ema,
            "learning_rate": window.rate,
            "epoch": after.epoch,
            "grad_norm": norm,
            "grad_absmax": largest,
            "samples_seen": after.samples,
            "seconds_per_step": seconds,
            "samples_per_second": samples / seconds if seconds else math.nan,
            "data_wait_seconds": window.data_wait,
            "rss_bytes": resident_bytes(),
            "nonfinite_steps": self.nonfinite.total,
        }
        by_dataset: dict[str, list[float]] = defaultdict(list)
        for batch, one in zip(window.batches, losses, strict=True):
            by_dataset[batch.dataset].append(one)
        taught = [one for batch, one in zip(window.batches, losses, strict=True) if batch.parent_target]
        values |= {"regularisation_loss": mean(taught)} if taught else {}
        values |= {f"loss/train/{dataset}": mean(some) for dataset, some in by_dataset.items()}
        if torch.cuda.is_available():
            values["vram_peak_bytes"] = torch.cuda.max_memory_allocated()
        now, self.events.step = self.events.step, after.step  # the numbers may be read one step later
        self.metrics(after.step, {name: value for name, value in values.items() if math.isfinite(value)})
        self.events.emit(
            "step.done",
            epoch=after.epoch,
            loss=loss if math.isfinite(loss) else None,
            lr=window.rate,
            grad_norm=norm if math.isfinite(norm) else None,
            seconds=round(window.seconds, 4),
            eta_seconds=round(seconds * (self.total_steps - after.step), 1),
            total_steps=self.total_steps,
            vram_peak_bytes=values.get("vram_peak_bytes"),
        )
        self.events.step = now

    def report_nonfinite(self, window: Any, norm: float, losses: Sequence[float]) -> str:
        """Names the images, times and losses of a bad update in an event; returns the same in a few words."""
        batches = window.batches
        wrong = [i for i, loss in enumerate(losses) if not math.isfinite(loss)] or list(range(len(batches)))
        ids = [id for i in wrong for id in batches[i].ids]
        what = f"step {window.after.step}: loss {mean(losses):g}, gradient norm {norm:g}, images {', '.join(ids[:4])}"
        self.events.emit(
            "nonfinite.found",
            "error",
            phase="training",
            action=self.nonfinite.action,
            step=window.after.step,
            losses=[f"{loss:g}" for loss in losses],
            grad_norm=f"{norm:g}",
            times=[round(t, 5) for i in wrong for t in window.times[i].tolist()],
            datasets=sorted({batches[i].dataset for i in wrong}),
            sample_ids=ids,
            files=[id.partition("/")[2] for id in ids],
        )
        return what
