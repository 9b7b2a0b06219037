"""The report as one HTML page: no request leaves it, and every text in it is escaped."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from simpletuner.events import Event
from simpletuner.tracking.report.chart import Line, chart, smoothed
from simpletuner.tracking.report.document import document
from simpletuner.tracking.report.images import Images
from simpletuner.tracking.report.record import Run, Subject
from simpletuner.tracking.words import duration, generate_command, sentence
from simpletuner.types import remark

TINY = 256  # pixels; up to here every pixel is shown as a square
LATEST = 200  # events on the page
STATES = {"finished": "finished", "failed": "failed", "stopped": "stopped", "running": "in progress"}
HIDDEN = ("log", "dataset.report")  # told elsewhere on the page


def render(run: Run, images: Images) -> str:
    """The whole page."""
    sections = [_head(run), _numbers(run), _use(run), _losses(run), _samples(run, images), _settings(run)]
    sections += [_datasets(run), _events(run)]
    command = f"simpletuner report {escape(shlex.quote(_folder(run)))}"
    footer = f"SimpleTuner. Made from the files of this run; <code>{command}</code> makes it anew."
    return document(run.name, sections, footer=footer, script=True)


# ---- what it was


def _head(run: Run) -> str:
    values = run.values
    model = [str(run.facts.get("family") or values.get("model_family") or ""), str(values.get("model_flavour") or "")]
    kind = "all weights"
    if values.get("model_type", "lora") == "lora":
        kind = f"LoRA rank {values.get('lora_rank', '?')} on {values.get('flux_lora_target', '?')}"
    return (
        f'<header><p class="state {run.state}">{STATES[run.state]}</p><h1>{escape(run.name)}</h1>'
        f'<p class="subtitle">{escape(" ".join(filter(None, model)))} · {escape(kind)}</p></header>'
    )


def _numbers(run: Run) -> str:
    smooth, speed = smoothed(run.series("train_loss")), run.series("seconds_per_step")
    of = f" <small>of {run.total_steps}</small>" if run.total_steps else ""
    rows = [("steps", f"{run.step}{of}")]
    if smooth:
        rows.append(("loss, smoothed", f"{smooth[-1][1]:.4f} <small>from {smooth[0][1]:.4f}</small>"))
    rows.append(("time", escape(duration(run.seconds))))
    rows += [("per step", f"{speed[-1][1]:.2f} s")] if speed else []
    images = sum(dataset.get("images") or 0 for dataset in run.datasets)
    rows += [("training pictures", str(images))] if run.datasets else []
    cells = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in rows)
    return f'<dl class="numbers">{cells}</dl>'


def _use(run: Run) -> str:
    if not run.result:
        return ""
    prompt = next((subject.prompt for subject in reversed(run.subjects) if subject.prompt), "...")
    command = generate_command(_folder(run), prompt)
    link = f'<a href="{escape(run.result)}">{escape(run.result)}</a>'
    return (
        f'<h2>Result</h2><div class="card use"><p>{link}</p>'
        f'<div><p class="quiet">Pictures with it:</p><pre><code>{escape(command)}</code></pre></div></div>'
    )


def _folder(run: Run) -> str:
    """The run's folder as its own configuration has it; it may have been moved since."""
    return str(run.values.get("output_dir") or run.name)


# ---- how it went


def _losses(run: Run) -> str:
    losses = run.series("train_loss")
    figures = [
        _figure("Loss", "each step faint, smoothed over it", [Line(losses, "raw"), Line(smoothed(losses), "smooth")]),
        *(
            _figure(f"Loss on {name.removeprefix('loss/val/')}", "evaluation", [Line(run.series(name), "smooth")])
            for name in _evaluations(run)
        ),
        _figure("Learning rate", "", [Line(run.series("learning_rate"), "plain")], small=True),
        _figure("Gradient norm", "before clipping", [Line(run.series("grad_norm"), "plain")], small=True),
    ]  # fmt: skip
    drawn = "".join(filter(None, figures))
    return f'<h2>Training</h2><div class="charts">{drawn}</div>' if drawn else ""


def _evaluations(run: Run) -> list[str]:
    """Names of the evaluation losses, without those of single times."""
    names = {name for values in run.metrics.values() for name in values if name.startswith("loss/val/")}
    return sorted(name for name in names if name.count("/") == 2)


def _figure(title: str, note: str, lines: Sequence[Line], small: bool = False) -> str:
    width, height = (480, 180) if small else (900, 280)
    drawn = chart(lines, label=title, width=width, height=height)
    caption = f'{escape(title)} <span class="quiet">{escape(note)}</span>'
    return f'<figure class="card"><figcaption>{caption}</figcaption>{drawn}</figure>' if drawn else ""


def _samples(run: Run, images: Images) -> str:
    shown = [subject for subject in run.subjects if subject.steps or subject.base]
    if not shown:
        return ""
    steps = sorted({step for subject in shown for step in subject.steps})
    buttons = "".join(
        f'<button data-step="{step}" aria-pressed="{"true" if step == steps[-1] else "false"}">{step}</button>'
        for step in steps
    )
    chooser = f'<div class="steps"><span>all at step</span>{buttons}</div>' if len(steps) > 1 else ""
    cards = "".join(_subject(subject, images, many=_many(subject, shown)) for subject in shown)
    return f'<h2>Samples</h2>{chooser}<div class="subjects">{cards}</div>'


def _many(subject: Subject, others: Sequence[Subject]) -> str:
    """What tells this picture from the others of its prompt: its size or number, where there are several."""
    same = [other for other in others if other.nickname == subject.nickname]
    several = [subject.size] if len({other.size for other in same}) > 1 else []
    several += [f"number {subject.index + 1}"] if len({other.index for other in same}) > 1 else []
    return ", ".join(several)


def _subject(subject: Subject, images: Images, many: str) -> str:
    note = " · ".join(filter(None, (remark(subject.nickname, subject.prompt), many)))
    title = escape(subject.prompt) or '<span class="quiet">no prompt</span>'
    heading = f'<div><h3>{title}</h3><p class="note">{escape(note)}</p></div>'
    return f'<article class="card subject">{heading}{_compare(subject, images)}{_strip(subject, images)}</article>'


def _compare(subject: Subject, images: Images) -> str:
    """The base model's picture under that of the last step, and a slider that uncovers one or the other."""
    last = max(subject.steps, default=None)
    some = subject.base or subject.steps[last]  # type: ignore[index]
    width, height = some.size
    tiny = " tiny" if max(some.size) <= TINY else ""
    what = escape(subject.prompt or "no prompt")
    parts = []
    if subject.base:
        source = escape(images.full(subject.base.file))
        parts.append(f'<img class="before{tiny}" loading="lazy" src="{source}" alt="base model: {what}">')
        parts.append('<span class="label left">base model</span>')
    for step, picture in subject.steps.items():
        hidden = "" if step == last else " hidden"
        source = escape(images.full(picture.file))
        parts.append(
            f'<img class="after{tiny}" loading="lazy" data-step="{step}"{hidden} src="{source}" '
            f'alt="step {step}: {what}">'
        )
    parts += [f'<span class="label right">step {last}</span>'] if last is not None else []
    pair = subject.base is not None and last is not None
    if pair:
        parts.append('<input type="range" min="0" max="100" value="50" aria-label="base model or trained">')
    kind = "compare pair" if pair else "compare"
    return f'<div class="{kind}" style="aspect-ratio: {width} / {height}">{"".join(parts)}</div>'


def _strip(subject: Subject, images: Images) -> str:
    """One small picture a step."""
    if len(subject.steps) < 2:
        return ""
    last = max(subject.steps)
    buttons = "".join(
        f'<button data-step="{step}" aria-pressed="{"true" if step == last else "false"}">'
        f'<img class="{"tiny" if max(picture.size) <= TINY else ""}" loading="lazy" '
        f'src="{escape(images.thumb(picture.file))}" alt="">{step}</button>'
        for step, picture in subject.steps.items()
    )
    return f'<div class="strip">{buttons}</div>'


# ---- what it was made from


def _settings(run: Run) -> str:
    if not run.values:
        return ""
    given = [key for key in run.values if not str(run.origins.get(key, "flavour ")).startswith("flavour ")]
    rest = [key for key in run.values if key not in given]
    tables = [
        f'<div class="card wide"><table class="settings">{_rows(run, keys)}</table></div>' if keys else ""
        for keys in (given, rest)
    ]
    return f"<h2>Settings</h2>{tables[0]}<details><summary>{len(rest)} that were not set</summary>{tables[1]}</details>"


def _rows(run: Run, keys: Iterable[str]) -> str:
    rows = []
    for key in keys:
        origin = str(run.origins.get(key, ""))
        if run.source and origin.startswith(f"{run.source}:"):
            origin = Path(run.source).name + origin[len(run.source) :]
        rows.append(
            f'<tr><td class="key">{escape(key)}</td><td><code>{escape(_value(run.values[key]))}</code></td>'
            f'<td class="origin">{escape(origin)}</td></tr>'
        )
    return "".join(rows)


def _value(value: Any) -> str:
    if value is None or value == "":
        return "unset" if value is None else '""'
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _datasets(run: Run) -> str:
    if not run.datasets:
        return ""
    head = "<th>dataset</th>" + "".join(
        f'<th class="number">{name}</th>' for name in ("pictures", "left out", "repeats", "batch")
    )
    rows = "".join(_dataset(dataset) for dataset in run.datasets)
    table = f"<table><tr>{head}<th>buckets</th></tr>{rows}</table>"
    return f'<h2>Datasets</h2><div class="card wide">{table}</div>'


def _dataset(dataset: Mapping[str, Any]) -> str:
    excluded, buckets = (_counts(dataset.get(key)) for key in ("excluded", "buckets"))
    reasons = ", ".join(f"{count} {reason}" for reason, count in excluded.items())
    left_out = f"{sum(excluded.values())}" + (f'<br><span class="quiet">{escape(reasons)}</span>' if reasons else "")
    told = " · ".join(f"{bucket} ({count})" for bucket, count in buckets.items())
    numbers = [str(dataset.get("images", "")), left_out, *(_number(dataset, key) for key in ("repeats", "batch_size"))]
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    return f"<tr><td>{escape(str(dataset.get('id')))}</td>{cells}<td>{escape(told)}</td></tr>"


def _counts(value: Any) -> dict[str, int]:
    return value if isinstance(value, dict) else {}


def _number(dataset: Mapping[str, Any], key: str) -> str:
    return escape(str(dataset[key])) if key in dataset else ""


# ---- what happened


def _events(run: Run) -> str:
    told = [(event, text) for event in run.events if event.type not in HIDDEN and (text := _told(event))]
    if not told:
        return ""
    warnings = [(event, text) for event, text in told if event.severity in ("warning", "error", "critical")]
    alarms = f'<ul class="card wide log">{_log(list(_once(warnings)))}</ul>' if warnings else ""
    left = len(told) - LATEST
    cut = f'<p class="quiet">The first {left} are in events.jsonl.</p>' if left > 0 else ""
    several = f"All {len(told)} events" if len(told) != 1 else "The one event"
    everything = f'{cut}<ul class="card wide log">{_log(told[-LATEST:])}</ul>'
    return f"<h2>Events</h2>{alarms}<details><summary>{several}</summary>{everything}</details>"


def _told(event: Event) -> str | None:
    """The event as a sentence; None for one that says nothing to a reader, or whose data is of another version."""
    try:
        return sentence(event)
    except (TypeError, ValueError, AttributeError):
        return None


def _once(events: Iterable[tuple[Event, str]]) -> Iterable[tuple[Event, str]]:
    """The same words are told once."""
    seen = set()
    for event, text in events:
        if text not in seen:
            seen.add(text)
            yield event, text


def _log(events: Sequence[tuple[Event, str]]) -> str:
    return "".join(
        f'<li class="{escape(event.severity)}"><span class="step" title="{escape(str(event.time))}">step {event.step}'
        f"</span><p>{escape(text)}</p></li>"
        for event, text in events
    )
