"""The index of one dataset: what is known of each file, so that an unchanged one is never opened again.

It lives beside the latents, never beside the images, and can be deleted at any time; only time is lost.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from simpletuner.errors import DiskError

VERSION = 1  # raised when a column changes its meaning; older files are made anew


@dataclass
class Row:
    """One image file. `reason` is why its content cannot be used, empty if it can."""

    path: str
    stamp: str
    height: int = 0  # after rotation
    width: int = 0
    format: str = ""
    digest: str = ""  # sha256 of the bytes; empty until they are first read
    reason: str = ""
    detail: str = ""
    caption_stamp: str = ""  # "<caption path>:<stamp>"; empty if there is no caption file
    caption: str | None = None  # text of the caption file

    @property
    def claimed(self) -> bool:
        """Whether the size is what a table says, and nobody has looked at the file."""
        return not self.format and not self.reason


COLUMNS = tuple(Row.__dataclass_fields__)


class Index:
    """The rows of one dataset, by path. One process writes it, from one thread."""

    def __init__(self, path: Path):
        """DiskError (exit 7) if there can be no such file."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except (OSError, sqlite3.OperationalError) as error:
            reason = getattr(error, "strerror", None) or error
            fix = "give an output_dir, or cache_dir_vae, that can be written"
            raise DiskError(f"{path.parent}: {reason}", fix=fix) from error

    def _open(self) -> None:
        try:
            self._connection = self._connect()
            if self._version() != VERSION:
                self._renew()
        except sqlite3.DatabaseError:
            self._renew()

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=30)

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def _renew(self) -> None:
        with suppress(AttributeError):
            self._connection.close()
        self.path.unlink(missing_ok=True)
        self._connection = self._connect()
        columns = ", ".join(c + (" PRIMARY KEY" if c == "path" else "") for c in COLUMNS)
        with self._connection:
            self._connection.execute(f"CREATE TABLE images ({columns}) WITHOUT ROWID")
            self._connection.execute(f"PRAGMA user_version = {VERSION}")

    def rows(self) -> dict[str, Row]:
        """All rows; a damaged file counts as empty."""
        try:
            found = self._connection.execute(f"SELECT {', '.join(COLUMNS)} FROM images").fetchall()
        except sqlite3.DatabaseError:
            self._renew()
            return {}
        return {values[0]: Row(*values) for values in found}

    def put(self, rows: Iterable[Row]) -> None:
        """Adds or replaces rows, all or none."""
        marks = ", ".join("?" * len(COLUMNS))
        with self._connection:
            self._connection.executemany(f"INSERT OR REPLACE INTO images VALUES ({marks})", map(astuple, rows))

    def remove(self, paths: Iterable[str]) -> None:
        with self._connection:
            self._connection.executemany("DELETE FROM images WHERE path = ?", ((path,) for path in paths))

    def close(self) -> None:
        self._connection.close()
