"""TensorCache: named tensors by content key, one checked file each. Reading never computes (data.md section 11)."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from simpletuner.data.keys import CONVENTION, ENCODER_LETTERS, item_path
from simpletuner.data.stores.local import LocalStore
from simpletuner.data.stores.memory import MemoryStore
from simpletuner.errors import DataError
from simpletuner.types import Size

if TYPE_CHECKING:
    from torch import Tensor

READ_TRIES = 3
FORMAT = "1"


class BadItem(DataError):
    """A cache item that does not hold what was written; it was moved aside and is made again by the next fill."""

    area = "cache"


class TensorCache:
    """Tensors by key in a store of its own, all from one encoder. `kind` is "vae" or "text"."""

    def __init__(self, store: LocalStore | MemoryStore, encoder: str, kind: str):
        self.store, self.encoder, self.kind = store, encoder, kind

    @classmethod
    def at(cls, root: Path, encoder: str, kind: str, sync_every: int = 128) -> TensorCache:
        """The cache of one encoder below `root`."""
        return cls(LocalStore(root / encoder[:ENCODER_LETTERS], sync_every), encoder, kind)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The distinct keys that are not stored, in their order."""
        stored = {listing.path for listing in self.store.list()}
        return [key for key in dict.fromkeys(keys) if item_path(key) not in stored]

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> int:
        """Stores an item, whole or not at all; returns its bytes."""
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        header, body = _split(data)
        header["__metadata__"] = {
            "simpletuner": FORMAT,
            "kind": self.kind,
            "key": key,
            "convention": str(CONVENTION),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
        data = b"".join((len(text).to_bytes(8, "little"), text, body))
        self.store.write(item_path(key), data)
        return len(data)

    def read(self, key: str, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, Tensor]:
        """The tensors of an item, checked. BadItem (exit 3) if it is missing or damaged."""
        path = item_path(key)
        data = self._bytes(path)
        problem = self._problem(data, key)
        if not problem:
            tensors = load(data)
            found = {name: list(tensors[name].shape) for name in tensors}
            if shapes is None or found == {name: list(shape) for name, shape in shapes.items()}:
                return tensors
            problem = f"it holds {found}"
        self.store.write(path + ".bad", data)
        self.store.delete(path)
        raise BadItem(
            f"{self.kind} cache item {path} is damaged: {problem}", fix="start again: only this item is made anew"
        )

    def flaw(self, key: str, num_bytes: int | None = None, picture: Size | None = None) -> str:
        """What is wrong with a stored item; empty if nothing is. Reads all of it and changes nothing.

        num_bytes: what its tensors have together. picture: the size in pixels, to whose edges a latent's are in
        proportion.
        """
        try:
            data = self._bytes(item_path(key))
        except BadItem as error:
            return error.problems[0].message.partition(f"{key}.safetensors ")[2]
        if problem := self._problem(data, key):
            return problem
        tensors = load(data)
        found = sum(tensor.nbytes for tensor in tensors.values())
        if num_bytes is not None and found != num_bytes:
            return f"it holds {found} bytes in place of {num_bytes}"
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        if picture and any(shape[-2] * picture.width != shape[-1] * picture.height for shape in shapes.values()):
            return f"it holds {shapes} for a picture of {picture}"
        bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
        return f"{', '.join(bad)} holds numbers that are not finite" if bad else ""

    def _bytes(self, path: str) -> bytes:
        for attempt in range(READ_TRIES):
            try:
                return self.store.read(path)
            except FileNotFoundError as error:
                raise BadItem(
                    f"{self.kind} cache item {path} is missing", fix="start again: it is made anew"
                ) from error
            except OSError as error:
                if attempt == READ_TRIES - 1:
                    raise BadItem(f"{self.kind} cache item {path} cannot be read: {error.strerror}") from error
                time.sleep(0.1 * (attempt + 1))
        raise AssertionError("unreachable")

    def _problem(self, data: bytes, key: str) -> str:
        """What is wrong with the bytes of an item; empty if nothing is."""
        try:
            header, body = _split(data)
            facts = header["__metadata__"]
            expected = (self.kind, key, str(CONVENTION))
            if (facts["kind"], facts["key"], facts["convention"]) != expected:
                return "it is another item"
            if facts["sha256"] != hashlib.sha256(body).hexdigest():
                return "its checksum differs"
            load(data)
        except (KeyError, TypeError):
            return "its header is not that of a cache item"
        except (ValueError, SafetensorError) as error:
            return str(error)
        return ""


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """(header, tensor bytes) of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 + length:
        raise ValueError("the file is cut off")
    header = json.loads(data[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("not a safetensors file")
    return header, memoryview(data)[8 + length :]
