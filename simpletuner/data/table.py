"""A table with rows about images: their captions, their sizes (data.md sections 3.2, 4 and 7.1).

A row is found by the name of its image. Mistakes in a table are reported together, each with its line.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import splitext
from typing import BinaryIO, NamedTuple

from simpletuner.data.captions import MAX_CAPTION_BYTES
from simpletuner.data.rows import READERS, Row, Unreadable
from simpletuner.errors import Problem
from simpletuner.kernels.packages import Package
from simpletuner.protocols import Source
from simpletuner.schema import Group
from simpletuner.types import Size

KINDS = ("parquet", "jsonl", "csv")  # what caption_strategy and metadata_backend call a table
NAME_COLUMN = "file_name"
CAPTION_COLUMNS = ("text", "caption", "prompt")  # the first that a row has, if none is named
TAGS = "tags"  # of a .json table, likewise
LINES_SHOWN = 10
PYARROW = Package("pyarrow", "pip install 'simpletuner[datasets]'")


class TableKeys(Group, title="Table of a dataset"):
    """The object `parquet`, `jsonl` or `csv` of a dataset."""

    path: Path | None = None
    """The file: .parquet, .jsonl, .csv or .json. Unset means metadata.jsonl or metadata.csv among the images."""
    filename_column: str | None = None
    """Column with the names of the images, seen from their folder; unset means file_name."""
    caption_column: str | None = None
    """Column with the captions, a text or a list of alternatives; unset means text, caption or prompt."""
    fallback_caption_column: str | None = None
    """Column that is taken where the caption is empty."""
    width_column: str | None = None
    """Column with the width in pixels."""
    height_column: str | None = None
    """Column with the height in pixels."""
    identifier_includes_extension: bool = False
    """Takes names as whole file names only; otherwise one without its extension will do."""


@dataclass(frozen=True)
class Table:
    """One table and what is taken from it."""

    path: Path | None  # None: `name` among the images
    name: str
    name_column: str
    caption_column: str | None
    fallback_column: str | None
    width_column: str | None
    height_column: str | None
    whole_names: bool
    captions: bool  # captions come from it
    sizes: bool  # sizes come from it

    @property
    def package(self) -> Package | None:
        return PYARROW if self.ending == ".parquet" else None

    @property
    def ending(self) -> str:
        return (self.path.suffix if self.path else splitext(self.name)[1]).lower()

    def wanted(self) -> list[str]:
        """The columns that the table must have."""
        name = None if self.ending == ".json" else self.name_column
        columns = (name, self.caption_column, self.fallback_column, self.width_column, self.height_column)
        return [column for column in columns if column]

    def open(self, source: Source) -> BinaryIO:
        """OSError if it cannot be read."""
        return self.path.open("rb") if self.path else io.BytesIO(source.read(self.name))

    def __str__(self) -> str:
        return str(self.path or self.name)


def mistakes(kind: str, keys: TableKeys, sizes: bool) -> Iterator[tuple[str, str]]:
    """(what is wrong, what to do) with the keys of a table."""
    ending = keys.path.suffix.lower() if keys.path else ""
    if keys.path is None and kind == "parquet":
        yield f"{kind} needs path", f'add "{kind}": {{"path": "..."}}'
    elif keys.path and ending not in READERS:
        yield f"{keys.path} is no table", f"tables end in {', '.join(READERS)}"
    given = [keys.width_column, keys.height_column]
    if sizes and not all(given):
        yield f"metadata_backend {kind} needs width_column and height_column", f'add them to "{kind}"'


def table(kind: str, keys: TableKeys, *, path: Path | None, captions: bool, sizes: bool) -> Table:
    """The table that the keys mean. `path` is theirs, made usable; what nothing is taken from has no columns."""
    return Table(
        path=path,
        name=f"metadata.{kind}",
        name_column=keys.filename_column or NAME_COLUMN,
        caption_column=keys.caption_column if captions else None,
        fallback_column=keys.fallback_caption_column if captions else None,
        width_column=keys.width_column if sizes else None,
        height_column=keys.height_column if sizes else None,
        whole_names=keys.identifier_includes_extension,
        captions=captions,
        sizes=sizes,
    )


class Facts(NamedTuple):
    """What a row says of its image."""

    number: int  # of its line
    captions: tuple[str, ...]  # none if its cells are empty
    size: Size | None  # None if they are empty or not asked for


class Wrong(ValueError):
    """A cell that cannot be used; the text names it and says why."""


@dataclass
class Contents:
    """What a table says, by the path of the image, and what is wrong with it."""

    table: Table
    facts: dict[str, Facts] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def unit(self) -> str:
        return "row" if self.table.ending == ".parquet" else "line"

    def report(self, message: str, fix: str, details: Sequence[str] = (), number: int = 0) -> None:
        more = [f"and {len(details) - LINES_SHOWN} more"] if len(details) > LINES_SHOWN else []
        where = f"{self.table}:{number}" if number else str(self.table)
        shown = tuple([*details[:LINES_SHOWN], *more])
        self.problems.append(Problem(message, "dataset", where=where, fix=fix, details=shown))


def read(table: Table, source: Source, images: Sequence[str]) -> Contents:
    """What the table says of `images`, which are paths below their root. Raises nothing: problems come along."""
    found = Contents(table)
    columns: dict[str, None] = {}
    named: dict[str, list[Facts]] = {}
    broken: list[Row] = []  # lines that are no rows
    wrong: list[Row] = []  # rows with a cell that cannot be used
    try:
        with table.open(source) as file:
            for row in READERS[table.ending](file, columns, [*table.wanted(), *_caption_columns(table)]):
                if row.wrong:
                    broken.append(row)
                    continue
                try:
                    name, facts = _name(row, table), _facts(row, table)
                    named.setdefault(name, []).append(facts)
                except Wrong as error:
                    wrong.append(row._replace(wrong=str(error)))
    except (Unreadable, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        found.report(f"the table cannot be read: {reason}", "mend the file, or name another one")
        return found
    lacking = _lacking(table, columns) if columns else []
    if lacking:
        message = f"the table has no column {' and no column '.join(lacking)}"
        found.report(message, "name those that it has", [f"its columns: {', '.join(columns)}"])
    if unusable := sorted([*broken, *([] if lacking else wrong)], key=lambda row: row.number):
        lines = [f"{found.unit} {row.number}: {row.wrong}" for row in unusable]
        found.report(f"{len(lines)} {found.unit}s cannot be used", "mend or remove them", lines, unusable[0].number)
    if not lacking:
        _match(found, named, images)
    return found


def _lacking(table: Table, columns: Collection[str]) -> list[str]:
    """The columns that must be there and are not."""
    lacking = [f'"{column}"' for column in table.wanted() if column not in columns]
    offered = _caption_columns(table)
    if table.captions and not table.caption_column and not any(column in columns for column in offered):
        lacking.append(" or ".join(f'"{column}"' for column in offered))
    return lacking


def _caption_columns(table: Table) -> tuple[str, ...]:
    if table.caption_column:
        return (table.caption_column,)
    return (*CAPTION_COLUMNS, TAGS) if table.ending == ".json" else CAPTION_COLUMNS


def _name(row: Row, table: Table) -> str:
    column = "" if table.ending == ".json" else table.name_column
    value = row.cells.get(column)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise Wrong(f'"{column}" names no image')
    return str(value).strip().replace("\\", "/").removeprefix("./")


def _facts(row: Row, table: Table) -> Facts:
    captions: tuple[str, ...] = ()
    if table.captions:
        column = next((c for c in _caption_columns(table) if c in row.cells), "")
        captions = _captions(row, column) or _captions(row, table.fallback_column or "")
    if not table.sizes:
        return Facts(row.number, captions, None)
    height, width = _edge(row, table.height_column), _edge(row, table.width_column)
    return Facts(row.number, captions, Size(height, width) if height and width else None)


def _captions(row: Row, column: str) -> tuple[str, ...]:
    """The texts of a cell, without empty ones."""
    value = row.cells.get(column) if column else None
    texts = [text for text in (value if isinstance(value, (list, tuple)) else [value]) if text is not None]
    for text in texts:
        if not isinstance(text, str):
            raise Wrong(f'"{column}" is {text!r:.40}, neither a text nor a list of texts')
        if "\0" in text:
            raise Wrong(f'"{column}" holds a NUL character')
        if len(text.encode(errors="replace")) > MAX_CAPTION_BYTES:
            raise Wrong(f'"{column}" is above 1 MiB')
    return tuple(text for text in (text.replace("\r\n", "\n").strip() for text in texts) if text)


def _edge(row: Row, column: str | None) -> int | None:
    """A width or height; None if the cell is empty."""
    value = row.cells.get(column) if column else None
    if value is None or value == "":
        return None
    try:
        edge = int(value) if not isinstance(value, bool) else 0
        if edge > 0 and edge == float(value):
            return edge
    except (TypeError, ValueError, OverflowError):
        pass
    raise Wrong(f'"{column}" is {value!r:.40}, no number of pixels')


def _match(found: Contents, named: Mapping[str, Sequence[Facts]], images: Sequence[str]) -> None:
    """Fills in the facts by image; reports names that stand for several rows, several images, or none."""
    whole, stems = set(images), _stems(images) if not found.table.whole_names else {}
    rows: dict[str, list[Facts]] = {}
    unsure: list[tuple[int, str]] = []
    lost: list[tuple[int, str]] = []
    for name, facts in named.items():
        paths = [name] if name in whole else stems.get(name, [])
        if len(paths) == 1:
            rows.setdefault(paths[0], []).extend(facts)
        else:
            said = f"{name} may be {' or '.join(paths)}" if paths else name
            (unsure if paths else lost).append((facts[0].number, said))
    twice = {path: sorted(facts, key=lambda fact: fact.number) for path, facts in rows.items() if len(facts) > 1}
    if twice:
        lines = [f"{path}: {found.unit}s {_listed(fact.number for fact in facts)}" for path, facts in twice.items()]
        fix = "keep one; a list in its cell gives several captions"
        found.report(f"{len(twice)} images have several rows", fix, lines, next(iter(twice.values()))[1].number)
    if unsure:
        lines = [f"{found.unit} {number}: {text}" for number, text in unsure]
        found.report(f"{len(unsure)} names fit several images", "write their extension", lines, unsure[0][0])
    hint = f"names are seen from the folder of the images, such as {images[0]}"
    lines = [f"{found.unit} {number}: {name}" for number, name in lost]
    if lost and not rows:
        found.report(f"none of {len(lost)} names in the table is an image of the set", hint, lines, lost[0][0])
    elif lost:
        found.notices.append(f"{found.table}: {len(lost)} names are no image of the set ({lines[0]}); {hint}")
    found.facts = {path: facts[0] for path, facts in rows.items()}


def _stems(images: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in images:
        found.setdefault(splitext(path)[0], []).append(path)
    return found


def _listed(numbers: Iterable[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}"
