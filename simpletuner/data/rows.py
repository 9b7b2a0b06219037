"""The rows of a table file, each with its number: .jsonl, .csv, .json and .parquet."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

SPACE = re.compile(r"[ \t\r\n]*")
ROWS_AT_ONCE = 10_000  # of a parquet file


class Unreadable(ValueError):
    """The file as a whole is not what its ending says; the text says why."""


class Row(NamedTuple):
    """One row: its cells by column, or what is wrong with it."""

    number: int  # of the line in which it begins, from 1; of the row itself in a parquet file
    cells: Mapping[str, Any]
    wrong: str = ""


# (file, columns to fill in, those wanted) -> rows. What stops a reader is Unreadable.
Reader = Callable[[BinaryIO, dict[str, None], Collection[str]], Iterator[Row]]


def utf8(file: BinaryIO) -> BinaryIO:
    """The same text as UTF-8 without a byte-order mark; UTF-16 is known by its own."""
    mark = file.read(3)
    if mark == codecs.BOM_UTF8:
        return file
    file.seek(0)
    if not mark.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return file
    try:
        return io.BytesIO(file.read().decode("utf-16").encode())
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-16 (byte {error.start})") from error


def from_jsonl(file: BinaryIO, columns: dict[str, None], wanted: Collection[str]) -> Iterator[Row]:
    """An object in each line; empty lines are skipped."""
    for number, line in enumerate(utf8(file), 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line.decode())
        except UnicodeDecodeError as error:
            yield Row(number, {}, f"not UTF-8 (byte {error.start} of the line)")
            continue
        except (ValueError, RecursionError) as error:
            yield Row(number, {}, f"no JSON: {error}")
            continue
        if isinstance(cells, dict):
            columns.update(dict.fromkeys(cells))
            yield Row(number, cells)
        else:
            yield Row(number, {}, "no object; write { } around its values")


def from_csv(file: BinaryIO, columns: dict[str, None], wanted: Collection[str]) -> Iterator[Row]:
    """Cells with commas between them; the first line names the columns."""
    broken: list[int] = []
    lines = csv.reader(_decoded(utf8(file), broken), strict=True)
    header: list[str] = []
    while True:
        number = lines.line_num + 1
        try:
            cells = next(lines, None)
        except csv.Error as error:
            yield Row(number, {}, f"no CSV: {error}")
            continue
        if cells is None:
            return
        if broken:
            yield Row(broken.pop(), {}, "not UTF-8")
        elif not header:
            header = [name.strip() for name in cells]
            columns.update(dict.fromkeys(header))
            if len(columns) < len(header):
                yield Row(number, {}, "names a column twice")
        elif cells and len(cells) != len(header):
            yield Row(number, {}, f"{len(cells)} cells, but there are {len(header)} columns")
        elif cells:
            yield Row(number, dict(zip(header, cells, strict=True)))


def _decoded(lines: Iterable[bytes], broken: list[int]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode()
        except UnicodeDecodeError:
            broken.append(number)
            yield line.decode(errors="replace")


def from_json(file: BinaryIO, columns: dict[str, None], wanted: Collection[str]) -> Iterator[Row]:
    """One object with the names as keys. A value is a text or a list, which is the caption, or an object of cells.

    The name is given as the column "", the caption as "caption".
    """
    try:
        text = utf8(file).read().decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 (byte {error.start})") from error
    line, counted = 1, 0
    for start, name, value in _members(text):
        line, counted = line + text.count("\n", counted, start), start
        cells = value if isinstance(value, dict) else {"caption": value}
        columns.update(dict.fromkeys(cells))
        yield Row(line, {**cells, "": name})


def _members(text: str) -> Iterator[tuple[int, str, Any]]:
    """(offset, key, value) of the outermost object. A key given twice comes twice: json's own reader would hide it."""
    decode = json.JSONDecoder().raw_decode

    def after(char: str, index: int) -> int:
        """Where the next thing begins behind the character that has to come now."""
        index = _space(text, index)
        if not text.startswith(char, index):
            raise json.JSONDecodeError(f"expected {char}", text, index)
        return _space(text, index + 1)

    try:
        index = after("{", 0)
        while not text.startswith("}", index):
            start = index
            name, index = decode(text, index)
            if not isinstance(name, str):
                raise json.JSONDecodeError("a name stands in quotes", text, start)
            value, index = decode(text, after(":", index))
            yield start, name, value
            index = _space(text, index)
            if not text.startswith("}", index):
                index = after(",", index)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"no JSON object of names: {error}") from error


def _space(text: str, index: int) -> int:
    match = SPACE.match(text, index)
    assert match
    return match.end()


def from_parquet(file: BinaryIO, columns: dict[str, None], wanted: Collection[str]) -> Iterator[Row]:
    """Only the wanted columns are read."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        columns.update(dict.fromkeys(table.schema_arrow.names))
        batches = table.iter_batches(ROWS_AT_ONCE, columns=[name for name in columns if name in wanted])
        rows = (cells for batch in batches for cells in batch.to_pylist())
        for number, cells in enumerate(rows, 1):
            yield Row(number, cells)
    except (pyarrow.ArrowException, OSError) as error:
        raise Unreadable(f"no parquet file: {error}") from error


READERS: dict[str, Reader] = {
    ".jsonl": from_jsonl,
    ".csv": from_csv,
    ".json": from_json,
    ".parquet": from_parquet,
}
