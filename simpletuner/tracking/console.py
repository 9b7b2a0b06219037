"""The screen: one live line per phase on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.live import Live
from rich.text import Text

from simpletuner.events import Event
from simpletuner.tracking.words import duration, sentence, size

PLAIN_SECONDS = 10.0  # between two plain lines of one phase, and at least 1 % further on
LIVE_SECONDS = 0.1  # between two drawings of the live line
BAR = 20
SMOOTHING = 0.98  # of the loss, as loss_ema in metrics.jsonl
CACHES = {"text": "text cache", "vae": "image cache", "condition": "condition cache"}
SUMMED_UP = ("validation", "final_validation")  # validation.finished says how they went
STYLES = {"warning": "yellow", "error": "bold red", "critical": "bold red"}


class _Screen(RichConsole):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # Rich would end the process: a run outlives its reader


@dataclass
class Phase:
    """What the live line is about."""

    key: str
    label: str
    began: float
    done: int = 0
    total: int = 0
    details: list[str] = field(default_factory=list)
    shown_at: float = 0.0
    shown_done: int = 0
    finished: bool = False


class Console:
    """Subscribe it to the events of the main process and close it at the end.

    `intervals` names what comes every so many steps, like {"checkpoint": 500}: the training line counts down to it.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        intervals: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        stream = stream or sys.stderr
        self.live_line = stream.isatty() and os.environ.get("TERM") != "dumb"
        self.rich = _Screen(
            file=stream,
            force_terminal=self.live_line,
            no_color="NO_COLOR" in os.environ or not self.live_line,
            highlight=False,
            markup=False,
            emoji=False,
        )
        unicode = (getattr(stream, "encoding", None) or "").lower().startswith("utf")
        if not unicode and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a nickname in another script must not break the line
        self.full, self.empty = ("━", "┄") if unicode else ("#", "-")
        self.intervals, self.clock = dict(intervals or {}), clock
        self.live: Live | None = None
        self.phase: Phase | None = None
        self.total_steps = 0
        self.loss, self.weight = 0.0, 0.0  # weight corrects the bias towards zero of the first steps
        self.result = ""
        self.closed = False
        self.lock = threading.RLock()  # caches are filled by several threads

    def __call__(self, event: Event) -> None:
        with self.lock:
            if self.closed:
                return
            try:
                self._show(event)
            except OSError:  # the reader has gone
                self.closed = True
            except ValueError:
                if not self.rich.file.closed:
                    raise
                self.closed = True

    def close(self) -> None:
        """Leaves the terminal as it was found."""
        with self.lock:
            live, self.live, self.closed = self.live, None, True
            if live:
                try:
                    live.stop()
                except (OSError, ValueError):
                    return

    def _show(self, event: Event) -> None:
        data = event.data
        if event.type == "run.started":
            self.total_steps = data.get("total_steps") or 0
        elif event.type == "export.done":
            self.result = str(data.get("path") or "")
        elif event.type == "run.stage":
            self._stage(data)
        elif event.type == "cache.progress":
            kind = str(data.get("kind"))
            hits = [f"{data['hits']} were there"] if data.get("hits") else []
            label = f"{CACHES.get(kind, kind)} {data.get('dataset') or ''}".rstrip()
            self._advance(f"cache/{label}", label, data.get("done", 0), data.get("total", 0), hits)
        elif event.type == "step.done":
            self._step(event)
        elif text := sentence(event):
            if event.type == "run.finished" and self.result and not data.get("result"):
                text += f"\n{self.result}"
            self._line(text, event.severity)

    def _stage(self, data: Mapping) -> None:
        key, label, status = str(data.get("key")), str(data.get("label")), data.get("status")
        current, total = data.get("current") or 0, data.get("total") or 0
        if status == "started" or self.phase is None or self.phase.key != key:
            self._begin(key, label, total)
        if status == "done" and key in SUMMED_UP:
            self._clear()
        elif status == "done":
            self._end(total or current, total)
        else:
            self._advance(key, label, current, total, [], staged=True)

    def _step(self, event: Event) -> None:
        data, step = event.data, event.step
        total = data.get("total_steps") or self.total_steps
        loss, details = data.get("loss"), []
        if loss is not None:
            self.loss = SMOOTHING * self.loss + (1 - SMOOTHING) * loss
            self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)
        if self.weight:
            details.append(f"loss {self.loss / self.weight:.4f}")
        if data.get("lr") is not None:
            details.append(f"lr {data['lr']:.2e}")
        if data.get("seconds"):
            details.append(f"{data['seconds']:.2f} s/step")
        if data.get("eta_seconds") is not None and step < total:
            details.append(f"{duration(data['eta_seconds'])} left")
        if data.get("vram_peak_bytes"):
            details.append(f"peak {size(data['vram_peak_bytes'])}")
        for name in ("checkpoint", "validation"):
            wait = data.get(f"next_{name}")
            if wait is None and name in self.intervals:
                wait = self.intervals[name] - step % self.intervals[name]
            if wait and step + wait <= total:
                details.append(f"{name} in {wait}")
        self._advance("train", "train", step, total, details)

    def _begin(self, key: str, label: str, total: int) -> None:
        self.phase = Phase(key, label, self.clock(), total=total)

    def _advance(self, key: str, label: str, done: int, total: int, details: list[str], staged: bool = False) -> None:
        if self.phase is None or self.phase.key != key:
            self._begin(key, label, total)
        phase = self.phase
        assert phase is not None
        phase.done, phase.total, phase.details = done, total, details
        if total and done >= total and not staged:
            self._end(done, total)  # caches and steps have no event of their own for the end
        elif self.live_line:
            self._draw(phase)
        else:
            self._plain(phase)

    def _end(self, done: int, total: int) -> None:
        """The last line of a phase stays on the screen."""
        phase = self.phase
        if phase is None or phase.finished:
            return
        phase.done, phase.total, phase.finished = done, total, True
        seconds = self.clock() - phase.began
        took = [] if seconds < 1 or phase.key == "train" else [f"in {duration(seconds)}"]
        self._clear()
        self._line("  ".join([phase.label, *self._count(phase, done_word="done"), *phase.details, *took]))

    def _clear(self) -> None:
        if self.live:
            self.live.update(Text(""), refresh=True)

    def _plain(self, phase: Phase) -> None:
        now, first = self.clock(), phase.shown_at == 0
        moved = (phase.done - phase.shown_done) * 100 >= phase.total
        if first or (now - phase.shown_at >= PLAIN_SECONDS and moved):
            phase.shown_at, phase.shown_done = now, phase.done
            self._line("  ".join([phase.label, *self._count(phase), *phase.details]))

    def _draw(self, phase: Phase) -> None:
        now = self.clock()
        if phase.shown_at and now - phase.shown_at < LIVE_SECONDS:
            return
        phase.shown_at = now
        if self.live is None:
            self.live = Live(console=self.rich, auto_refresh=False, transient=True)
            self.live.start()
        self.live.update(self._bar(phase), refresh=True)

    def _bar(self, phase: Phase) -> Text:
        """The phase in one line that fits the terminal: details go from the right, then the bar."""
        room = max(20, self.rich.width - 1)
        full = round(BAR * min(1.0, phase.done / phase.total)) if phase.total else 0
        parts = [phase.label, self.full * full + self.empty * (BAR - full), *self._count(phase), *phase.details]
        fixed = 3 if phase.total else 2
        while len(parts) > fixed and sum(cell_len(p) + 2 for p in parts) - 2 > room:
            parts.pop()
        if not phase.total or sum(cell_len(p) + 2 for p in parts) - 2 > room:
            parts.pop(1)
        line = Text(no_wrap=True, overflow="ellipsis")
        for index, part in enumerate(parts):
            line.append(("  " if index else "") + part, style="bold" if index == 0 else "")
        line.truncate(room, overflow="ellipsis")
        return line

    def _count(self, phase: Phase, done_word: str = "") -> list[str]:
        return [f"{phase.done}/{phase.total}"] if phase.total else [done_word] if done_word else []

    def _line(self, text: str, severity: str = "info") -> None:
        """A line that stays; on a terminal it scrolls above the live one."""
        prefix = "" if severity in ("info", "debug") else f"{severity}  "
        self.rich.print(Text(prefix + text, style=STYLES.get(severity, "")), soft_wrap=True)
