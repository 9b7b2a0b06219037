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

from simpletuner.data.stores.local import LocalStore
from simpletuner.data.stores.memory import MemoryStore
from simpletuner.errors import DataError
from simpletuner.types import Placement

if TYPE_CHECKING:
    from torch import Tensor

CONVENTION = 1  # raised whenever decoding, resampling or layout changes a value
READ_TRIES = 3
FORMAT = "1"


def key_of(**parts: Any) -> str:
    """sha256 of the parts as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def latent_key(digest: str, placement: Placement, encoder: str, mode: str = "sample") -> str:
    """Key of one image's latent: the file's bytes, the placement, the VAE. No seed, no batch size, no device."""
    resize, crop, bucket = list(placement.resize), list(placement.crop), list(placement.bucket)
    return key_of(
        convention=CONVENTION, digest=digest, resize=resize, crop=crop, bucket=bucket, mode=mode, encoder=encoder
    )


def text_key(caption: str, encoder: str) -> str:
    """Key of one caption's embeddings; the encoder's fingerprint covers tokenizers, precision and length."""
    return key_of(convention=CONVENTION, caption=caption, encoder=encoder)


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
        return cls(LocalStore(root / encoder[:12], sync_every), encoder, kind)

    @staticmethod
    def path(key: str) -> str:
        return f"{key[:2]}/{key}.safetensors"

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The distinct keys that are not stored, in their order."""
        stored = {listing.path for listing in self.store.list()}
        return [key for key in dict.fromkeys(keys) if self.path(key) not in stored]

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
        self.store.write(self.path(key), data)
        return len(data)

    def read(self, key: str, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, Tensor]:
        """The tensors of an item, checked. BadItem (exit 3) if it is missing or damaged."""
        path = self.path(key)
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
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            return f"{type(error).__name__}: {error}"
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
