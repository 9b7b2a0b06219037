"""A plan as people read it, in 40 to 120 columns."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from simpletuner.adapters.kinds import KINDS
from simpletuner.adapters.options import Adapter
from simpletuner.config import Config
from simpletuner.data.health import Health
from simpletuner.data.reasons import said
from simpletuner.memory import budget
from simpletuner.memory.options import Memory
from simpletuner.models.options import Model
from simpletuner.plan import Details, Plan
from simpletuner.plan.fit import GIB
from simpletuner.plan.memory import Moved
from simpletuner.plan.table import JOINED, columns, wrapped
from simpletuner.plan.time import Span
from simpletuner.tracking.options import Hub, Logging
from simpletuner.training.options import Speed, Training

LABEL = 10  # columns in front of a line
EXCLUDED, BUCKETS, DIFFERENCES = 10, 6, 6  # listed; the rest is counted
WIDE = 100  # columns from which buckets stand in the table
Row = tuple[str, str]  # label, text


def text(plan: Plan, width: int = 80, again: str = "simpletuner train") -> str:
    """The whole plan. again: the command that would start the run. Problems are told elsewhere."""
    lines = [_head(plan, width)]
    if details := plan.details:
        lines += ["", *_datasets(details.datasets, width), *_rows(_data(details), width, hang=2)]
        lines += ["", *_caches(details, width), ""]
        for rows in (_length(details), _resume(details), _memory(details), _disk(details), _time(details)):
            lines += _rows(rows, width)
        lines += _rows(_outcome(plan, details), width)
    lines += ["", f"next: {again}"] if plan.can_start else []
    return "\n".join(line.rstrip().replace(JOINED, " ") for line in lines)


def _head(plan: Plan, width: int) -> str:
    answer = f"can start: {'yes' if plan.can_start else 'no'}"
    if Training.__name__ not in plan.config.groups:
        return f"PLAN      {answer}"
    config = plan.config
    parts = [config[Training].output_dir.name, *described(config)]
    line = f"PLAN      {parts[0]}   {', '.join(parts[1:])}"
    if len(line) + len(answer) + 3 <= width:
        return f"{line}{answer:>{width - len(line)}}"
    return "\n".join([*_rows([("PLAN", f"{parts[0]}   {', '.join(parts[1:])}"), ("", answer)], width)])


def described(config: Config) -> list[str]:
    """What is trained, in a few words."""
    model, kind = config[Model], KINDS[config[Model].model_type]
    trained = f"{kind.title} rank {config[Adapter].lora_rank}" if kind.base_stays else "all weights"
    base = config[Memory].storage(config[Speed].mixed_precision)
    return [f"{model.model_family} {model.model_flavour}", trained, base]


def _rows(rows: Iterable[Row], width: int, hang: int = 0) -> list[str]:
    """Each text behind its label, continued below itself, `hang` columns further in."""
    lines = []
    for label, told in rows:
        lines += wrapped(told, width, f"{label:<{LABEL}}", " " * (LABEL + hang)) or [label]
    return lines


def _datasets(found: Sequence[Health], width: int) -> list[str]:
    aside = width < WIDE
    rows = [["DATASETS", "files", "used", "excluded", "repeats", "samples", "" if aside else "buckets (images)"]]
    below: list[Row] = []
    for one in found:
        numbers = [one.found, one.used, one.found - one.used, one.repeats, one.samples]
        rows.append([one.id, *(f"{number}" for number in numbers), "" if aside else _buckets(one)])
        below.append(("" if below else "buckets", f"{one.id}  {_buckets(one)}"))
    return columns(rows, width) + (_rows(below, width, hang=2) if aside else [])


def _buckets(one: Health) -> str:
    named = [f"{name}{JOINED}({images})" for name, images in list(one.buckets.items())[:BUCKETS]]
    return "  ".join([*named, *([f"and {len(one.buckets) - BUCKETS} more"] if len(one.buckets) > BUCKETS else [])])


def _data(details: Details) -> Iterator[Row]:
    found = details.datasets
    excluded = [(one.id, item) for one in found for item in one.left_out]
    for number, (id, item) in enumerate(excluded[:EXCLUDED]):
        yield "excluded" if number == 0 else "", f"{id}  {item.path}  {said(item)}"
    if len(excluded) > EXCLUDED:
        yield "", f"and {len(excluded) - EXCLUDED} more: simpletuner dataset report"
    for one in found:
        if one.beyond_subset:
            yield "subset", f"{one.id}: {one.beyond_subset} more images are outside max_num_samples"
    grown = [f"{len(one.upscaled)} of {one.id}" for one in found if one.upscaled]
    if grown:
        yield "upscaled", f"{', '.join(grown)}: they are smaller than they are trained at"
    topped = [f"{one.doubles} of {one.id}" for one in found if one.doubles]
    if topped:
        yield "top-ups", f"{', '.join(topped)}: samples met once more to fill the last batches of an epoch"
    regularising = [one.id for one in found if one.regularisation]
    if regularising:
        yield "regular.", f"{', '.join(regularising)}: trained towards what the base model itself makes"
    if found:
        strategies = ", ".join(sorted({one.captions.strategy for one in found}))
        dropout = ", ".join(f"{share:.2f}" for share in details.dropouts)
        texts = f"{details.num_captions} {_plural(details.num_captions, 'text')}"
        yield "captions", f"{strategies}, {texts}, dropout {dropout}"


def _caches(details: Details, width: int) -> list[str]:
    rows = [["CACHES", "needed", "present", "to make", "stale", "size", ""]]
    for cache in details.caches:
        known = cache.present is not None
        numbers = [cache.needed, cache.present, cache.to_make if known else None, cache.stale]
        size = _bytes(cache.bytes_present + cache.bytes_to_make)
        rows.append([cache.name, *("?" if number is None else f"{number}" for number in numbers), size, ""])
    lines = columns(rows, width)
    if any(cache.present is None for cache in details.caches):
        why = "the first start names the items, from the model's files"
        lines += _rows([("", f"? not known yet: {why}")], width)
    return lines


def _length(details: Details) -> Iterator[Row]:
    length = details.length
    update = length.batch_size * length.accumulation
    yield "LENGTH", f"{length.steps} steps = {length.epochs:.2f} epochs of {length.per_epoch:g} steps"
    factors = f"batch {length.batch_size} x accumulation {length.accumulation}"
    yield "", f"one step: {factors} = {update} {_plural(update, 'sample')}"


def _resume(details: Details) -> Iterator[Row]:
    found, length = details.resume, details.length
    if found.complete:
        yield "RESUME", f"{found.checkpoint}: this run is complete; raise max_train_steps, or use another output_dir"
    elif found.checkpoint:
        yield "RESUME", f"{found.checkpoint}, {max(0, length.steps - found.step)} steps left"
    if found.moved:
        yield "" if found.checkpoint else "RESUME", f"from step {found.step}; set aside: {', '.join(found.moved)}"
    for problem in found.differences[:DIFFERENCES]:
        yield "", f"changed: {problem.message}"
    if len(found.differences) > DIFFERENCES:
        yield "", f"and {len(found.differences) - DIFFERENCES} more"


def _memory(details: Details) -> Iterator[Row]:
    fit = details.fit
    if fit.on_gpu:
        peak = fit.vram
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in peak.vram.items() if size >= GIB / 20)
        total = f" of {fit.gpu.total_bytes / GIB:.1f}" if fit.gpu else ""
        yield "MEMORY", f"VRAM {peak.vram_bytes / GIB:.1f}{total}{JOINED}GiB in {peak.name}: {parts}"
        others = [
            f"{phase.name} {phase.vram_bytes / GIB:.1f}" + (" on the CPU" if phase in fit.elsewhere else "")
            for phase in fit.phases
            if phase is not peak
        ]
        yield "", f"else {', '.join(others)}" + (f"   ({fit.unknown}: its size is not known)" if fit.unknown else "")
    if details.moved:
        yield "", _moved(details.moved, details.time.step)
    ram = f" of {fit.ram_bytes / GIB:.1f}" if fit.ram_bytes else ""
    where = "" if fit.on_gpu else "   no GPU: everything is in RAM"
    yield "" if fit.on_gpu else "MEMORY", f"RAM {fit.ram_needed / GIB:.1f}{ram}{JOINED}GiB{where}"
    if not fit.fits:
        yield from _remedies(details)


def _moved(found: Moved, step: Span | None) -> str:
    """step: how long it takes when nothing moves, at best."""
    where = "on disk" if found.on_disk else "in RAM"
    waiting, slots = (f"{size / GIB:.1f}{JOINED}GiB" for size in (found.waiting_bytes, found.slot_bytes))
    said = f"{found.stay} blocks stay on the device, {found.move} wait {where} ({waiting}) and take turns in {slots}; "
    said += f"{_bytes(found.bus_bytes)} are copied in a step"
    if step is None or found.on_disk:
        return said
    stall = budget.stall_seconds(found.bus_bytes, step.low)
    return (
        f"{said}, which it waits for about {stall:.2f}{JOINED}s" if stall >= 0.01 else f"{said}, beside the computation"
    )


def _remedies(details: Details) -> Iterator[Row]:
    if not details.remedies:
        yield "", "no setting of this version makes it fit"
    for number, remedy in enumerate(details.remedies):
        together = "and also " if remedy.together and number else ""
        yield "", f"{together or 'it fits with '}{remedy.change}: {remedy.peak_bytes / GIB:.1f}{JOINED}GiB"


def _disk(details: Details) -> Iterator[Row]:
    disk = details.disk
    parts = [("download", disk.download), ("caches", disk.caches)]
    checkpoints = disk.checkpoint * disk.num_checkpoints
    parts += [(f"checkpoints ({disk.num_checkpoints} x {_bytes(disk.checkpoint)})", checkpoints)]
    parts += [("images", disk.images), ("result", disk.result), ("offloaded weights", disk.offloaded)]
    told = ", ".join(f"{name} {_bytes(size)}" for name, size in parts if size)
    free = ", ".join(f"{_bytes(volume.free)} free" for volume in disk.volumes[-1:])
    yield "DISK", f"about {_bytes(disk.needed)} of {free}: {told}"
    for volume in disk.volumes[:-1]:
        if volume.needed:
            yield "", f"{shown_path(Path(volume.folder))}: {_bytes(volume.needed)} of {_bytes(volume.free)} free"


def _time(details: Details) -> Iterator[Row]:
    time = details.time
    if time.total == Span(0, 0):
        yield "TIME", "none: nothing is left to do"
        return
    parts = [("caches", time.caches), ("training", time.training), ("images", time.images)]
    told = [f"{name} {_duration(span)}" for name, span in parts if span and span.high]
    step = f" ({_seconds(time.step)}/step)" if time.step and time.step.high else ""
    told = [part + step if part.startswith("training") else part for part in told]
    total = f"about {_duration(time.total)}: " if time.total else ""
    yield "TIME", f"{total}{', '.join(told)}".rstrip(": ") if told else "not known"
    yield "", f"basis: {time.basis}"


def _outcome(plan: Plan, details: Details) -> Iterator[Row]:
    config, base = plan.config, details.base
    kind = KINDS[config[Model].model_type]
    size = f"   {_bytes(details.weight_bytes)}" if kind.base_stays else ""
    yield "OUTPUT", f"{shown_path(plan.result)}{size}"
    gated = "; gated: access " + base.access if base.gated and not base.here else ""
    yield "LICENCE", f"{base.flavour.licence}{gated}. The result inherits it."
    yield "REMOTE", remote(config)


def remote(config: Config) -> str:
    """Whom a run tells of itself."""
    hub, logging = config[Hub], config[Logging]
    trackers = [name for name in logging.report_to if name not in ("none", "simpletuner")]
    hooks = "on" if logging.webhook_config else "none"
    return f"hub push {'on' if hub.push_to_hub else 'off'}, trackers {', '.join(trackers) or 'none'}, webhooks {hooks}"


def shown_path(path: Path | str) -> str:
    """From here if it is below."""
    below = os.path.relpath(path)
    return str(path) if below.startswith("..") else below


def _plural(number: int, noun: str) -> str:
    return noun if number == 1 else f"{noun}s"


def _bytes(size: float) -> str:
    """In units of a thousand, as disks are sold."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            number = f"{size / factor:.3g}" if size < 1000 * factor else f"{size / factor:.0f}"
            return f"{number}{JOINED}{unit}"
    return f"{size / 1e3:.0f}{JOINED}kB"


def _seconds(span: Span) -> str:
    """Of one step."""
    low, high = (f"{value:.2f}{JOINED}s" if value < 10 else _clock(value) for value in (span.low, span.high))
    return low if span.low == span.high else f"{low} to {high}"


def _duration(span: Span) -> str:
    if span.low == span.high:
        return _clock(span.low)
    return f"{_clock(span.low)} to {_clock(span.high)}"


def _clock(seconds: float) -> str:
    """The two largest units."""
    if seconds < 90:
        return f"{max(1, round(seconds))}{JOINED}s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes}{JOINED}min"
    if minutes < 48 * 60:
        return f"{minutes // 60}{JOINED}h{JOINED}{minutes % 60:02d}{JOINED}min"
    return f"{minutes // 1440}{JOINED}days"
