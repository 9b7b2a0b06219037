"""From the words that an image comes with to its captions (data.md section 7)."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from posixpath import basename, splitext

from simpletuner.data import filters
from simpletuner.data.filters import Filter
from simpletuner.data.options import ImageEntry
from simpletuner.data.shuffle import Shuffle

MAX_CAPTION_BYTES = 1 << 20
TRIGGER = "[trigger]"


class Unreadable(ValueError):
    """A caption file that cannot be used; the text says why. `fatal` ones are the user's to mend before training."""

    def __init__(self, message: str, fatal: bool):
        super().__init__(message)
        self.fatal = fatal


def decode(data: bytes) -> str:
    """The text of a caption file: UTF-8, or UTF-16 with its mark; no mark, LF line ends, inner text as it is."""
    if len(data) > MAX_CAPTION_BYTES:
        raise Unreadable(f"a caption of {len(data)} bytes is above 1 MiB", fatal=True)
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 (byte {error.start})", fatal=False) from error
    if "\0" in text:
        raise Unreadable("holds a NUL character", fatal=True)
    return text.replace("\r\n", "\n").strip()


def caption_paths(path: str, extension: str | None) -> list[str]:
    """Where the caption file of an image may be, best first."""
    stem = splitext(path)[0]
    endings = [extension if extension.startswith(".") else "." + extension] if extension else [".txt", ".caption"]
    return [f"{stem}{ending}" for ending in endings]


def from_name(path: str) -> str:
    return splitext(basename(path))[0].replace("_", " ").strip()


def read(entry: ImageEntry, path: str, text: str | None) -> list[str]:
    """The captions as written, before any instance prompt; empty if there are none. `text` is the caption file's."""
    if entry.caption_strategy == "filename":
        found = [from_name(path)]
    elif text is None:
        found = []
    elif entry.disable_multiline_split:
        found = [text]
    else:
        found = [line.strip() for line in text.split("\n")]
    return [caption for caption in found if caption]


def variants(
    entry: ImageEntry, prompts: Sequence[str], path: str, found: Sequence[str], removed: Sequence[Filter] = (),
    shuffle: Shuffle | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """All captions of one image, each once; empty if it has none. Filters leave the instance prompts alone.

    prompts: the instance prompts. found: the captions as written. removed: the filter list. Raises filters.TooSlow.
    """
    if entry.only_instance_prompt or entry.caption_strategy == "instanceprompt":
        found = prompts
    else:
        found = [caption for caption in (filters.apply(removed, caption) for caption in found) if caption]
        if not found and entry.missing_caption == "empty":
            return ("",)
        if not found and entry.missing_caption == "instance_prompt":
            found = prompts
        elif prompts:
            found = [caption.replace(TRIGGER, prompts[0]) for caption in found]
            if entry.prepend_instance_prompt:
                found = [result for caption in found for result in _prepend(prompts, caption)]
    if shuffle:
        found = [other for caption in found for other in shuffle.variants(caption, f"{entry.id}/{path}", entry.id)]
    return tuple(dict.fromkeys(found))


def _prepend(prompts: Sequence[str], caption: str) -> list[str]:
    if any(re.search(rf"(?<!\w){re.escape(prompt)}(?!\w)", caption) for prompt in prompts):
        return [caption]
    return [f"{prompt} {caption}" for prompt in prompts]
