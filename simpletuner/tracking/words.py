"""Events as sentences, for the screen and the text log."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from simpletuner.events import Event


def duration(seconds: float) -> str:
    """Like 8.4 s, 4:32 or 2:05:10."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(num_bytes: float) -> str:
    for unit in ("B", "KB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


def generate_command(folder: str, prompt: str) -> str:
    """What to type for a picture with the run in `folder`; the prompt in the quotes that people use where they do."""
    plain = not set(prompt) & set('"\\$`!\n')
    quoted = f'"{prompt}"' if plain else shlex.quote(prompt)
    return f"simpletuner generate --run {shlex.quote(folder)} --prompt {quoted}"


def _fix(data: Mapping[str, Any]) -> str:
    return f" ({data['fix']})" if data.get("fix") else ""


def _dataset(data: Mapping[str, Any]) -> str:
    excluded = data.get("excluded") or 0
    left_out = sum(excluded.values()) if isinstance(excluded, Mapping) else excluded
    buckets = len(data.get("buckets") or ())
    images = data.get("images")
    text = f"dataset {data.get('dataset')}: {images} image{'s' * (images != 1)}"
    text += f" in {buckets} bucket{'s' * (buckets != 1)}" if buckets else ""
    return text + (f", {left_out} left out" if left_out else "")


def _checkpoint(data: Mapping[str, Any]) -> str:
    details = [size(data["bytes"])] if data.get("bytes") else []
    details += [duration(data["seconds"])] if data.get("seconds") else []
    return f"saved {data.get('path')}" + (f" ({', '.join(details)})" if details else "")


def _validated(data: Mapping[str, Any]) -> str:
    skipped = f", {data['skipped']} not made" if data.get("skipped") else ""
    made = f"{data.get('images')} images{skipped} in {duration(data.get('seconds') or 0)}"
    return f"validation at step {data.get('step')}: {made}"


def _finished(data: Mapping[str, Any]) -> str:
    result = f"\n{data['result']}" if data.get("result") else ""
    return f"finished after {data.get('step')} steps in {duration(data.get('seconds') or 0)}{result}"


SENTENCES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "run.resumed": lambda data: f"goes on from {data.get('from')} at step {data.get('step')}",
    "run.stopped": lambda data: f"stopped by {data.get('reason')} at step {data.get('step')}",
    "run.finished": _finished,
    "run.failed": lambda data: f"{data.get('message')}{_fix(data)}\nexit code {data.get('exit_code')}",
    "dataset.report": _dataset,
    "checkpoint.saved": _checkpoint,
    "checkpoint.failed": lambda data: f"{data.get('path')} was not saved: {data.get('reason')}",
    "export.failed": lambda data: f"{data.get('path')} did not pass its test: {data.get('checks')}",
    "validation.finished": _validated,
    "nonfinite.found": lambda data: f"numbers that are not finite: {data.get('action')}, {data.get('sample_ids')}",
    "memory.retry": lambda data: f"out of memory in {data.get('phase')}: {data.get('action')}",
    "disk.low": lambda data: (
        f"{data.get('path')}: {size(data.get('free_bytes', 0))} free, {size(data.get('needed_bytes', 0))} needed"
    ),
    "warning": lambda data: f"{data.get('message')}{_fix(data)}",
    "log": lambda data: str(data.get("message")),
}


def sentence(event: Event) -> str | None:
    """What to tell a person about the event; None if it only moves a bar."""
    say = SENTENCES.get(event.type)
    return say(event.data) if say else None
