"""Words that are taken out of captions, or replaced in them (data.md section 7.4)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import regex

LONGEST_SECONDS = 1.0  # that one entry may take on one caption
REPLACEMENT = re.compile(r"s/((?:\\.|[^/\\])+)/((?:\\.|[^/\\])*)/?", re.DOTALL)


class TooSlow(ValueError):
    """An entry that took longer than LONGEST_SECONDS on one caption; the text names both."""


@dataclass(frozen=True)
class Filter:
    """One entry of a filter list. Without `pattern` it is plain text; without `template` it is removed."""

    entry: str
    pattern: regex.Pattern[str] | None
    template: str | None = None

    def __call__(self, caption: str) -> str:
        """Raises TooSlow."""
        if self.template is None:
            caption = caption.replace(self.entry, "")
        if self.pattern is None:
            return caption
        times = 0 if self.template is None else 1  # 0 means all
        try:
            return self.pattern.sub(self.template or "", caption, count=times, timeout=LONGEST_SECONDS)
        except TimeoutError:
            shown = caption if len(caption) <= 60 else caption[:57] + "..."
            message = f'"{self.entry}" takes more than {LONGEST_SECONDS:g} s on the caption "{shown}"'
            raise TooSlow(message) from None


def read(entry: str) -> tuple[Filter, str]:
    """(the filter, a notice or ""). ValueError if a replacement cannot be carried out."""
    import regex  # re with a time limit; late, so that help and completion start at once

    if match := REPLACEMENT.fullmatch(entry):
        find, replace = match[1], match[2].replace(r"\/", "/")
        try:
            pattern = regex.compile(find)
            _check_template(pattern, replace)
        except (regex.error, IndexError) as error:
            raise ValueError(f'"{entry}": {error}') from error
        return Filter(entry, pattern, replace), ""
    notice = f'"{entry}" is no s/find/replace/ and is removed as it stands' if entry.startswith("s/") else ""
    try:
        return Filter(entry, regex.compile(entry)), notice
    except regex.error as error:
        plain = f'"{entry}" is no regular expression ({error}) and is removed as plain text'
        return Filter(entry, None), notice or plain


def _check_template(pattern: regex.Pattern[str], template: str) -> None:
    """Raises what the first match would raise: an unknown group, a broken escape."""
    import regex

    names = {number: name for name, number in pattern.groupindex.items()}
    groups = (f"(?P<{names[n]}>)" if n in names else "()" for n in range(1, pattern.groups + 1))
    regex.compile("".join(groups)).sub(template, "", count=1)


def apply(filters: Sequence[Filter], caption: str) -> str:
    """The caption after all filters, with single spaces. Raises TooSlow."""
    for one in filters:
        caption = one(caption)
    return re.sub(" {2,}", " ", caption).strip() if filters else caption
