"""What the files of a run say, put in order for a reader. Files that are missing or torn leave gaps, never errors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from simpletuner.events import Event, read_lines

METRICS, MEDIA, CONFIG = "metrics.jsonl", "validation_media.jsonl", "config.resolved.json"
BASE = "benchmarks/base_model"
ENDINGS = {"run.finished": "finished", "run.stopped": "stopped", "run.failed": "failed"}


class Picture(NamedTuple):
    """One image file of the run."""

    file: str  # relative to the run's folder
    size: tuple[int, int]  # width, height
    settings: Mapping[str, Any]


@dataclass
class Subject:
    """One prompt at one size and number, over the whole run."""

    nickname: str
    prompt: str
    size: str
    index: int
    base: Picture | None = None
    steps: dict[int, Picture] = field(default_factory=dict)  # in order


@dataclass(frozen=True)
class Run:
    """A run as its files tell it."""

    name: str
    source: str  # of the settings: a configuration file, or "command line"
    values: Mapping[str, Any]  # of the options
    origins: Mapping[str, str]  # of those that are not at their default
    metrics: Mapping[int, Mapping[str, float]]  # by step
    events: Sequence[Event]
    subjects: Sequence[Subject]
    datasets: Sequence[Mapping[str, Any]]

    @property
    def state(self) -> str:
        """How it ended; "running" also if nobody could write down how."""
        known = {**ENDINGS, "run.started": "running"}
        return next((known[event.type] for event in reversed(self.events) if event.type in known), "running")

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of the last start: family, flavour, model_type."""
        return next((event.data for event in reversed(self.events) if event.type == "run.started"), {})

    @property
    def step(self) -> int:
        return max(self.metrics, default=0)

    @property
    def total_steps(self) -> int:
        """The length of the run; 0 if no step has told it."""
        told = (event.data.get("total_steps") for event in reversed(self.events) if event.type == "step.done")
        return next((int(total) for total in told if total), 0)

    @property
    def result(self) -> str:
        done = (event.data.get("path") for event in reversed(self.events) if event.type == "export.done")
        return str(next(done, None) or "")

    @property
    def seconds(self) -> float:
        """From the first to the last event of each attempt, together."""
        spans: dict[int, tuple[float, float]] = {}
        for event in self.events:
            if (now := _seconds(event.time)) is not None:
                first, _ = spans.get(event.attempt, (now, now))
                spans[event.attempt] = (first, now)
        return sum(last - first for first, last in spans.values())

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one metric."""
        return [(step, values[name]) for step, values in self.metrics.items() if _is_number(values.get(name))]


def read(folder: Path) -> Run:
    """The run in `folder`, as far as its files can be read."""
    config = _json(folder / CONFIG)
    config = config if isinstance(config, dict) else {}
    origins = config.get("_origins")
    events = [event for line in read_lines(folder / "events.jsonl") if (event := _event(line))]
    return Run(
        name=folder.resolve().name,
        source=str(config.get("_source", "")),
        values={key: value for key, value in config.items() if not key.startswith("_")},
        origins=origins if isinstance(origins, dict) else {},
        metrics=_metrics(folder),
        events=events,
        subjects=_subjects(folder),
        datasets=_datasets(folder, events),
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _event(line: Mapping[str, Any]) -> Event | None:
    try:
        event = Event(**line)
    except TypeError:  # of another version
        return None
    return event if isinstance(event.data, dict) and isinstance(event.type, str) else None


def _metrics(folder: Path) -> dict[int, dict[str, float]]:
    """The numbers of every step in order; of a step that was run twice, those of the last attempt."""
    found: dict[int, tuple[int, dict[str, float]]] = {}
    for line in read_lines(folder / METRICS):
        step, attempt, values = line.get("step"), line.get("attempt", 0), line.get("values")
        if isinstance(step, int) and isinstance(values, dict) and attempt >= found.get(step, (0, {}))[0]:
            found[step] = (attempt, values)
    return {step: found[step][1] for step in sorted(found)}


def _subjects(folder: Path) -> list[Subject]:
    """Every prompt with its images that are still there, in the order in which they were first made."""
    found: dict[tuple[str, int, str], Subject] = {}

    def subject(line: Mapping[str, Any]) -> Subject:
        settings = line["settings"]
        size = str(settings.get("size") or f"{line['W']}x{line['H']}")
        place = (str(line["nickname"]), int(line["index"]), size)
        return found.setdefault(place, Subject(place[0], str(settings.get("prompt", "")), size, place[1]))

    for line in sorted(filter(_is_picture, read_lines(folder / MEDIA)), key=lambda line: line["step"]):
        if picture := _picture(folder, line, ""):
            subject(line).steps[line["step"]] = picture
    index = _json(folder / BASE / "index.json")
    lines = index.get("images", []) if isinstance(index, dict) else []
    for line in lines:
        if isinstance(line, dict) and _is_picture({"step": 0, **line}) and (picture := _picture(folder, line, BASE)):
            subject(line).base = picture
    return list(found.values())


def _is_picture(line: Mapping[str, Any]) -> bool:
    numbers = all(isinstance(line.get(key), int) for key in ("step", "index", "W", "H"))
    return numbers and isinstance(line.get("settings"), dict) and {"nickname", "file"} <= line.keys()


def _picture(folder: Path, line: Mapping[str, Any], below: str) -> Picture | None:
    """None if the file is gone, or is none of the run's."""
    file = f"{below}/{line['file']}".lstrip("/")
    path, home = (folder / file).resolve(), folder.resolve()
    if not path.is_file() or home not in path.parents:
        return None
    return Picture(file, (line["W"], line["H"]), line["settings"])


def _datasets(folder: Path, events: Sequence[Event]) -> list[dict[str, Any]]:
    """Each dataset as the newest checkpoint describes it; before there is one, as the scan did."""
    steps = [int(p.name[11:]) for p in folder.glob("checkpoint-*") if p.name[11:].isdigit()]
    described = _json(folder / f"checkpoint-{max(steps)}" / "datasets.json") if steps else None
    if isinstance(described, list) and all(isinstance(dataset, dict) for dataset in described):
        return described
    scans = [event for event in events if event.type == "dataset.report"]
    last = max((event.attempt for event in scans), default=0)
    return [{"id": event.data.get("dataset"), **event.data} for event in scans if event.attempt == last]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _seconds(time: str) -> float | None:
    try:
        return datetime.fromisoformat(str(time).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
