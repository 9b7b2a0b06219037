"""MemoryStore: a Store without a disk, so that data can be tested and shown without one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from simpletuner.data.stores.local import natural
from simpletuner.protocols import Listing


class MemoryStore:
    """Files in a dictionary. Equal bytes have equal stamps."""

    def __init__(self, files: Mapping[str, bytes] | None = None):
        self.files: dict[str, bytes] = dict(files or {})
        self.loops: list[str] = []

    def list(self) -> Iterator[Listing]:
        for path in sorted(self.files, key=natural):
            data = self.files[path]
            yield Listing(path, len(data), f"{len(data)}-{hashlib.sha256(data).hexdigest()[:16]}")

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path][start : None if length is None else start + length]

    def write(self, path: str, data: bytes) -> None:
        self.files[path] = bytes(data)

    def exists(self, path: str) -> bool:
        return path in self.files

    def delete(self, path: str) -> None:
        self.files.pop(path, None)

    def sync(self) -> None:
        """Nothing to make durable."""

    def free_bytes(self) -> int | None:
        return None

    def clear_leftovers(self) -> int:
        return 0
