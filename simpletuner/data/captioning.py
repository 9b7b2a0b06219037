"""The keys of the dataset file that decide captions: instance prompts, the filter list, the table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from simpletuner import reading
from simpletuner.data import filters as filter_list
from simpletuner.data import places
from simpletuner.data import table as tables
from simpletuner.data.filters import Filter
from simpletuner.data.item import Item, block
from simpletuner.data.options import Data, ImageEntry, TextEntry
from simpletuner.data.table import Table, TableKeys
from simpletuner.schema import Raw

BLOCKS = {"caption_shuffle", *tables.KINDS}  # keys whose value is an object of its own
TABLE_COLUMNS = ("caption_column", "fallback_caption_column", "width_column", "height_column")  # may stand beside it


def prompts(item: Item, raw: dict[str, Raw]) -> tuple[str, ...]:
    """A list of instance prompts, taken out of `raw`; one prompt stays there."""
    found = raw.get("instance_prompt")
    if not found or not isinstance(found.value, list):
        return ()
    del raw["instance_prompt"]
    if not all(isinstance(prompt, str) and prompt.strip() for prompt in found.value):
        item.say("instance_prompt: expected a text or a list of texts", "instance_prompt")
        return ()
    return tuple(prompt.strip() for prompt in found.value)


def filter_file(item: Item, raw: dict[str, Raw]) -> None:
    """Puts the lines of a .txt file of filters into `raw`; a .json one is read with the other lists."""
    key = "caption_filter_list"
    found = raw.get(key)
    if not found or not isinstance(found.value, str) or not found.value.strip():
        return
    path = Path(os.path.expanduser(found.value.strip()))
    if path.suffix.lower() == ".json":
        return
    del raw[key]
    if path.suffix.lower() != ".txt":
        fix = "write [ ], or name a .txt or .json file"
        item.say(f"{key}: {found.value} is neither a list nor a file", key, fix=fix)
        return
    text, problems = reading.read_text(path)
    item.pass_on(key, problems)
    raw[key] = Raw(text.splitlines(), found.origin)


def filters(item: Item, entry: TextEntry) -> Iterator[Filter]:
    """The filter list of a text cache; entries that cannot be used are reported."""
    key = "caption_filter_list"
    for written in entry.caption_filter_list or ():
        if not written.strip():
            continue
        try:
            found, notice = filter_list.read(written)
        except ValueError as error:
            item.say(f"{key}: {error}", key, fix="mend the regular expression, or put \\ before its signs")
            continue
        if notice:
            item.say(f"{key}: {notice}", key, severity="notice")
        yield found


def table(item: Item, entry: ImageEntry, defaults: Data) -> Table | None:
    """The table that captions or sizes come from; None without one, or with a problem, which is reported."""
    given = [kind for kind in tables.KINDS if getattr(entry, kind) is not None]
    blocks = {kind: block(item, entry, kind, TableKeys) for kind in given}
    captions, sizes = entry.caption_strategy in tables.KINDS, entry.metadata_backend in tables.KINDS
    kinds = [kind for kind in tables.KINDS if kind in (entry.caption_strategy, entry.metadata_backend)]
    if len(given) > 1 or len(kinds) > 1:
        named = " and ".join(given if len(given) > 1 else kinds)
        item.say(f"{named}: a dataset has one table", (given or ["metadata_backend"])[-1], fix="keep one of them")
        return None
    if not kinds:
        for key in sorted({*given, *TABLE_COLUMNS} & item.raw.keys()):
            fix = f'set "caption_strategy" or "metadata_backend" to {given[0] if given else "the kind of table"}'
            item.say(f"{key} has no effect: neither captions nor sizes come from a table", key, fix, "notice")
        return None
    written = blocks[given[0]] if given else TableKeys()
    if written is None:
        return None
    values = {**{key: getattr(entry, key) for key in TABLE_COLUMNS}, **written.model_dump(exclude_none=True)}
    if kinds == ["parquet"]:
        values["caption_column"] = values["caption_column"] or defaults.parquet_caption_column
        values["filename_column"] = values.get("filename_column") or defaults.parquet_filename_column
    keys = TableKeys.model_construct(**values)
    wrong = list(tables.mistakes(kinds[0], keys, sizes))
    path = places.folder(str(keys.path)) if keys.path else None
    if path and not wrong and not entry.disabled and not path.is_file():
        wrong.append((f"path: {path} does not exist", "mend the path; a relative one starts at the working directory"))
    for message, fix in wrong:
        item.say(message, given[0] if given else "caption_strategy", fix)
    if not sizes and not wrong and (keys.width_column or keys.height_column):
        message = "width_column and height_column have no effect: metadata_backend is discovery"
        item.say(message, given[0] if given else "", f'set "metadata_backend": "{kinds[0]}"', "notice")
    return tables.table(kinds[0], keys, path=path, captions=captions, sizes=sizes)


def check(item: Item, entry: ImageEntry, prompts: tuple[str, ...]) -> None:
    """Reports what asks for an instance prompt where there is none."""
    if prompts:
        return
    for key, needs in (
        ("caption_strategy", entry.caption_strategy == "instanceprompt"),
        ("prepend_instance_prompt", entry.prepend_instance_prompt),
        ("only_instance_prompt", entry.only_instance_prompt),
        ("missing_caption", entry.missing_caption == "instance_prompt"),
    ):
        if needs:
            item.say(f"{key} {getattr(entry, key)} needs instance_prompt", key, fix='add "instance_prompt": "..."')
