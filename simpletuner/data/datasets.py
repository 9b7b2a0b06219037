"""The dataset file: entries, defaults and rules, with all problems reported together. No image is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simpletuner import reading, schema
from simpletuner.data import captioning, places
from simpletuner.data.filters import Filter
from simpletuner.data.geometry import Shape, edge
from simpletuner.data.item import Item, block, replaced, take
from simpletuner.data.options import (
    NEVER_DELETES,
    NOT_YET,
    NOT_YET_IN_CACHES,
    NOT_YET_VALUES,
    NOT_YET_VALUES_IN_CACHES,
    REFUSED_VALUES,
    WITHOUT_EFFECT,
    Data,
    ImageEntry,
    PerImageSet,
    PerTextCache,
    TextEntry,
)
from simpletuner.data.places import PLACES, Place
from simpletuner.data.shuffle import Shuffle
from simpletuner.data.table import Table
from simpletuner.errors import Problem
from simpletuner.registry import did_you_mean
from simpletuner.retired import is_off

MAX_MEGAPIXELS = 20
LEAST_EDGE_CELLS = 4  # of the alignment: 256 px for FLUX.1, 64 for nano
FLUX_ALIGNMENT, FLUX_COMFORTABLE_EDGE = 64, 512
SUM_TOLERANCE = 0.001
OFF: tuple[Any, ...] = (None, False, 0, "", [], {})


@dataclass(frozen=True)
class ImageSet:
    """One image dataset, with the global defaults filled in."""

    entry: ImageEntry
    shape: Shape
    prompts: tuple[str, ...]  # instance prompts; several are alternatives
    place: Place
    cache: Path  # of the latents, the index and the list of rejected images
    pixel_limit: int
    where: str  # file:line:column, for messages
    own: frozenset[str] = frozenset()  # keys that the entry itself sets; the others are the global defaults
    filters: tuple[Filter, ...] = ()  # of its text cache
    shuffle: Shuffle | None = None
    table: Table | None = None

    @property
    def id(self) -> str:
        return self.entry.id


@dataclass(frozen=True)
class TextSet:
    """Where text embeddings are kept."""

    entry: TextEntry
    cache: Path
    filters: tuple[Filter, ...] = ()


@dataclass(frozen=True)
class Datasets:
    """All that is enabled in the dataset file."""

    images: tuple[ImageSet, ...]
    text: TextSet


def load(
    path: Path, defaults: Data, *, family: str, alignment: int, output_dir: Path
) -> tuple[Datasets | None, list[Problem]]:
    """(datasets, problems). The datasets are None if a problem is an error. Opens no image and loads no torch."""
    document = reading.read(path)
    problems = list(document.problems)
    if document.failed:
        return None, problems
    if not isinstance(document.value, list):
        found = "an object" if isinstance(document.value, dict) else type(document.value).__name__
        message = f"data_backend_config: expected a list of datasets, found {found}"
        return None, [
            *problems,
            Problem(message, where=document.where(), fix="wrap it in [ ]", keys=("data_backend_config",)),
        ]
    if not document.value:
        message = "data_backend_config: the list of datasets is empty"
        return None, [
            *problems,
            Problem(message, where=document.where(), fix="add an entry with id, type and instance_data_dir"),
        ]
    names = {"family": family, "model_family": family, "output_dir": str(output_dir)}
    images: list[ImageSet] = []
    texts: list[tuple[Item, TextEntry]] = []
    items: list[Item] = []
    for index in range(len(document.value)):
        item = take(document, index, names, problems)
        if item is None:
            continue
        items.append(item)
        entry, prompts = _entry(item, defaults)
        if isinstance(entry, TextEntry):
            texts.append((item, entry))
        elif isinstance(entry, ImageEntry):
            image = _image_set(item, entry, prompts, defaults, alignment, names)
            if image and not entry.disabled:
                images.append(image)
    _check_ids(items, problems)
    text = _text_set(texts, defaults, names, problems)
    _check_together(images, items, text, document.where(), problems)
    if any(p.severity == "error" for p in problems):
        return None, problems
    return Datasets(tuple(replace(image, filters=text.filters) for image in images), text), problems


def _entry(item: Item, defaults: Data) -> tuple[ImageEntry | TextEntry | None, tuple[str, ...]]:
    """(the entry with the global defaults, its instance prompts); None if its role or a required key is missing."""
    role = item.text("dataset_type").strip().lower() or "image"
    group: type[ImageEntry | TextEntry] = TextEntry if role == "text_embeds" else ImageEntry
    refused = _refused_values(item, NOT_YET_VALUES_IN_CACHES if group is TextEntry else {})
    if "dataset_type" in refused:
        return None, ()
    known = schema.options([group])
    _check_keys(item, known)
    raw = {key: value for key, value in item.raw.items() if key in known and key not in refused}
    for key in captioning.BLOCKS & raw.keys():
        if is_off(raw[key].value):
            del raw[key]
    captioning.filter_file(item, raw)
    prompts = captioning.prompts(item, raw)
    for mistake in places.misplaced(item.text("type").strip().lower(), raw) if group is ImageEntry else ():
        item.say(mistake.message, mistake.key, mistake.fix)
        refused |= {mistake.key} & {kind.required for kind in PLACES.values()} - raw.keys()
    parsed, found = schema.parse([group], raw)
    for problem in found:
        if problem.keys[:1] and problem.keys[0] in refused:
            continue  # it has its own message
        message, where = f"{item.name}: {problem.message}", problem.where or item.where
        item.problems.append(Problem(message, where=where, fix=problem.fix, keys=problem.keys))
    entry = parsed.get(group.__name__)
    if entry is None or refused:
        return None, ()
    shared = PerTextCache if group is TextEntry else PerImageSet
    inherited = {key: getattr(defaults, key) for key in shared.model_fields if key not in entry.model_fields_set}
    merged = entry.model_copy(update=inherited)
    assert isinstance(merged, (ImageEntry, TextEntry))
    if not prompts and isinstance(merged, ImageEntry) and merged.instance_prompt:
        prompts = (merged.instance_prompt,)
    return merged, prompts


def _refused_values(item: Item, further: Mapping[tuple[str, str], str]) -> set[str]:
    """Keys whose value belongs to a later feature or to none; each is reported."""
    refused = set()
    for (key, value), reason in {**REFUSED_VALUES, **NOT_YET_VALUES, **further}.items():
        if item.text(key).strip().lower() == value:
            kind = "" if (key, value) in REFUSED_VALUES else "not yet: "
            item.say(f'{key} "{value}": {kind}{reason}', key, fix=f"choose another {key}, or disable the dataset")
            refused.add(key)
    return refused


def _check_keys(item: Item, known: Mapping[str, schema.Option]) -> None:
    later = {**NOT_YET, **NOT_YET_IN_CACHES}  # the latter are known to image datasets
    for key, raw in item.raw.items():
        value = raw.value.strip() if isinstance(raw.value, str) else raw.value
        if key in known:
            continue
        off = value in OFF or (isinstance(value, str) and value.lower() in ("none", "false", "null"))
        if isinstance(value, dict) and str(value.get("enable", value.get("enabled", ""))).lower() == "false":
            off = True
        if key in NEVER_DELETES:
            if not off:
                item.say(
                    f"{key}: SimpleTuner never deletes your files",
                    key,
                    fix="images that cannot be used are listed with their reason",
                )
        elif key in WITHOUT_EFFECT:
            if value is not None and str(value).lower() != str(WITHOUT_EFFECT[key]).lower():
                item.say(f"{key} has no effect", key, severity="notice")
        elif key in later:
            reason, defaults = later[key]
            if not off and str(value).lower() not in {str(default).lower() for default in defaults}:
                item.say(f"{key}: not yet: {reason}", key, fix="remove it")
        else:
            fix = did_you_mean(key, [*known, *NOT_YET, *WITHOUT_EFFECT])
            item.say(f'unknown key "{key}"', key, fix=fix)


def _image_set(
    item: Item, entry: ImageEntry, prompts: tuple[str, ...], defaults: Data, alignment: int, names: Mapping[str, str]
) -> ImageSet | None:
    aspects = _aspects(item, entry)
    shape = Shape(entry, aspects, alignment, defaults.aspect_bucket_rounding)
    _check_sizes(item, entry, shape)
    captioning.check(item, entry, prompts)
    if entry.crop_aspect in ("closest", "random") and not aspects and "crop_aspect_buckets" not in item.raw:
        fix = "for example [0.75, 1.0, 1.33]"
        item.say(f"crop_aspect {entry.crop_aspect} needs crop_aspect_buckets", "crop_aspect", fix=fix)
    names = {**names, "id": entry.id}
    cache = str(entry.cache_dir_vae or "{output_dir}/cache/vae/{family}/{id}")
    kind = PLACES[entry.type]
    for mistake in kind.mistakes(entry):
        item.say(mistake.message, mistake.key, mistake.fix)
    folder = places.folder(replaced(cache, names, item, "cache_dir_vae"))
    shuffle = block(item, entry, "caption_shuffle", Shuffle)
    return ImageSet(
        entry, shape, prompts, kind.place(entry), folder, defaults.image_pixel_limit, item.where, frozenset(item.raw),
        shuffle=shuffle if shuffle and shuffle.enable else None, table=captioning.table(item, entry, defaults),
    )  # fmt: skip


def _aspects(item: Item, entry: ImageEntry) -> tuple[tuple[float, float], ...]:
    """crop_aspect_buckets as (aspect, weight)."""
    if entry.crop_aspect_buckets is None:
        return ()
    key, found, weighted = "crop_aspect_buckets", [], False
    for bucket in entry.crop_aspect_buckets:
        values = [bucket.get("aspect"), bucket.get("weight", 1.0)] if isinstance(bucket, dict) else [bucket, 1.0]
        weighted |= isinstance(bucket, dict) and "weight" in bucket
        try:
            aspect, weight = (float(v) for v in values)
        except (TypeError, ValueError):
            item.say(f"{key}: {bucket!r} is neither a number nor {{aspect, weight}}", key)
            return ()
        found.append((aspect, weight))
    if not found or any(aspect <= 0 or weight <= 0 for aspect, weight in found):
        item.say(f"{key}: aspects and weights are above 0, and there is at least one", key)
        return ()
    total = sum(weight for _, weight in found)
    if weighted and abs(total - 1) > SUM_TOLERANCE:
        item.say(f"{key}: the weights sum to {total:g}", key, fix="make them sum to 1")
    return tuple(found)


def _check_sizes(item: Item, entry: ImageEntry, shape: Shape) -> None:
    unit, least = entry.resolution_type, LEAST_EDGE_CELLS * shape.alignment
    sizes = ("resolution", "minimum_image_size", "maximum_image_size", "target_downsample_size")
    large = [key for key in sizes if unit == "area" and (getattr(entry, key) or 0) > MAX_MEGAPIXELS]
    for key in large:
        megapixels = f"{getattr(entry, key):g} megapixels"
        item.say(f"{key}: {megapixels}; did you mean pixel_area?", key, fix='set "resolution_type": "pixel_area"')
    if not large:
        found = edge(entry.resolution, unit, shape)
        if found < least or (unit == "pixel_area" and entry.resolution < least):
            item.say(f"resolution {entry.resolution:g} is below {least} px", "resolution", fix=f"use {least} or more")
        elif unit != "area" and entry.resolution**2 > MAX_MEGAPIXELS * 1e6:
            item.say(f"resolution {entry.resolution:g} is above {MAX_MEGAPIXELS} megapixels", "resolution")
        elif shape.alignment == FLUX_ALIGNMENT and found < FLUX_COMFORTABLE_EDGE:
            message = f"resolution {entry.resolution:g} is below 512 px, where FLUX.1 learns poorly"
            item.say(message, "resolution", severity="warning")
    maximum, downsample = entry.maximum_image_size, entry.target_downsample_size
    if bool(maximum) != bool(downsample):
        given, other = sorted(("maximum_image_size", "target_downsample_size"), key=lambda key: not getattr(entry, key))
        item.say(f"{given} needs {other}", given, fix=f"add {other}, or remove {given}")
    elif maximum and downsample and downsample > maximum:
        message = f"target_downsample_size {downsample:g} is larger than maximum_image_size {maximum:g}"
        item.say(message, "target_downsample_size")
    narrow, wide = entry.minimum_aspect_ratio, entry.maximum_aspect_ratio
    if narrow and wide and narrow > wide:
        item.say(f"minimum_aspect_ratio {narrow:g} is above maximum_aspect_ratio {wide:g}", "minimum_aspect_ratio")


def _check_ids(items: list[Item], problems: list[Problem]) -> None:
    first: dict[str, Item] = {}
    for item in items:
        name = item.text("id")
        if any(c in "/\\:" or ord(c) < 32 for c in name) or name in (".", ".."):
            item.say(f"id {name!r} cannot be part of a file name", "id", fix="leave out / \\ : and control characters")
        if name and name in first:
            positions = f"entries {first[name].index + 1} and {item.index + 1} of the list"
            item.say(f'id "{name}" is given twice, in {positions}', "id", fix="rename one")
        first.setdefault(name, item)


def _text_set(
    texts: list[tuple[Item, TextEntry]], defaults: Data, names: Mapping[str, str], problems: list[Problem]
) -> TextSet:
    enabled = [(item, entry) for item, entry in texts if not entry.disabled]
    marked = [(item, entry) for item, entry in enabled if entry.default]
    if not enabled:
        entry = TextEntry(id="text-embeds", type="local", default=True)
        inherited = {key: getattr(defaults, key) for key in PerTextCache.model_fields}
        chosen = Item(0, {}, "", problems), entry.model_copy(update=inherited)
    elif len(enabled) == 1:
        chosen = enabled[0]
        if not marked:
            chosen[0].say("is the only text cache, so it is the default one", severity="notice")
    else:
        chosen = (marked or enabled)[0]
        if len(marked) != 1:
            named = ", ".join(entry.id for _, entry in marked or enabled)
            ids = f"{len(marked) or 'none'} of the text caches marked default: {named}"
            enabled[1][0].say(ids, "default", fix='mark one with "default": true')
        else:
            fix = "keep the default one; texts are stored once per content"
            enabled[1][0].say("not yet: several text caches", fix=fix)
    item, entry = chosen
    folder = str(entry.cache_dir or defaults.cache_dir_text or "{output_dir}/cache/text/{family}")
    cache = places.folder(replaced(folder, {**names, "id": entry.id}, item, "cache_dir"))
    return TextSet(entry, cache, tuple(captioning.filters(item, entry)))


def _check_together(
    images: list[ImageSet], items: list[Item], text: TextSet, where: str, problems: list[Problem]
) -> None:
    """Rules over several entries: caches apart from images and each other, folders that exist, one set at least."""
    by_id = {item.text("id"): item for item in items}
    roots = {image.place.folder.resolve() for image in images if image.place.folder}
    caches = [(image.id, "cache_dir_vae", image.cache) for image in images] + [(text.entry.id, "cache_dir", text.cache)]
    for name, key, cache in caches:
        resolved = cache.resolve()
        for root in sorted(roots):
            if resolved == root or root in resolved.parents:
                message = f"dataset {name}: {key} must be outside the images: {cache} lies in {root}"
                origin = by_id[name].raw[key].origin if name in by_id and key in by_id[name].raw else where
                problems.append(Problem(message, where=origin, fix="choose another folder", keys=(key,)))
                break
    for image in images:
        item = by_id[image.id]
        if image.cache.resolve() == text.cache.resolve():
            item.say(f"cache_dir_vae equals the text cache {text.cache}", "cache_dir_vae", fix="use two folders")
        if image.entry.text_embeds and image.entry.text_embeds != text.entry.id:
            item.say(
                f'text_embeds "{image.entry.text_embeds}" is no text cache', "text_embeds", fix=f"use {text.entry.id}"
            )
    missing = [image for image in images if image.place.folder and not os.path.exists(image.place.folder)]
    if missing:
        message = "instance_data_dir does not exist: " + ", ".join(f"{i.place} ({i.id})" for i in missing)
        fix = "create the folders, or mend the paths; relative ones start at the working directory"
        problems.append(Problem(message, "dataset", where=missing[0].where, fix=fix, keys=("instance_data_dir",)))
    enabled = [item for item in items if (item.text("dataset_type") or "image") == "image"]
    if not images and not any(p.severity == "error" for p in problems):
        hint = "all are disabled" if enabled else "there is no image dataset"
        problems.append(Problem(f"data_backend_config: nothing to train on: {hint}", where=where, fix="enable one"))
