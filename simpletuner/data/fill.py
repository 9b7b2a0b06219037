"""Encode what the caches lack: texts, then latents. Nothing is loaded when nothing is missing (data.md section 11)."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from simpletuner.data.ahead import ahead, threads
from simpletuner.data.cache import TensorCache
from simpletuner.data.keys import ENCODER_LETTERS, HEADER_BYTES, TILED, latent_key, text_key, tiled_instead
from simpletuner.data.ladder import Batches, Full, loaded, told
from simpletuner.data.library import Library, Shelf, placed_as
from simpletuner.data.pictures import BROKEN_PROFILE, BYTES_PER_PIXEL, FIRST_FRAME, Rejected, prepare
from simpletuner.data.scan import LeftOut, Placed
from simpletuner.diffusion import draw
from simpletuner.errors import DataError, DiskError, HardwareError
from simpletuner.events import EventLog
from simpletuner.kernels.device import free

DECODE_BYTES = 1 << 30  # images being decoded may hold this much together
SPARE = 1.1  # of the needed disk space
WRITES_AHEAD = 32
SECONDS_BETWEEN_REPORTS = 0.5
TEXT, IMAGES = "text cache", "image cache"  # as events call them
TEXT_ADVICE = "text_encoder_2_precision=int8-quanto takes half of it, offload_during_startup=true; or close programs"
TILED_MEANS = b"Memory ran out without tiling. Delete this file to try again without, or set vae_enable_tiling=true."
IMAGE_ADVICE = "offload_during_startup=true, a lower resolution; or close other programs"
NOTES = {
    BROKEN_PROFILE: "have a broken colour profile, which is ignored",
    FIRST_FRAME: "are animated; the first frame is used",
}


class Meter:
    """Tells how far a fill has come, now and then."""

    def __init__(self, events: EventLog, dataset: str, kind: str, total: int, hits: int):
        self.events, self.total = events, total
        self.facts: dict[str, Any] = {"dataset": dataset, "kind": kind, "total": total, "hits": hits}
        self.done, self._told = hits, 0.0
        self.tell(always=True)

    def add(self, count: int) -> None:
        self.done += count
        self.tell(always=self.done >= self.total)

    def tell(self, always: bool = False) -> None:
        if always or time.monotonic() - self._told > SECONDS_BETWEEN_REPORTS:
            self._told = time.monotonic()
            self.events.emit("cache.progress", done=self.done, **self.facts)


class Writer:
    """Writes cache items on a thread of its own. A failed write is raised by a later call, at the latest on leaving."""

    def __init__(self, cache: TensorCache):
        self.cache = cache
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="cache-writer")
        self._waiting: deque[Future[int]] = deque()

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        if len(self._waiting) >= WRITES_AHEAD:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self.cache.write, key, tensors))

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        goes_on = kind is None or kind is Full  # then what was handed over counts as made
        self._pool.shutdown(wait=True, cancel_futures=not goes_on)
        if goes_on:
            for future in self._waiting:
                future.result()
        self.cache.store.sync()


def check_space(cache: TensorCache, needed: int) -> None:
    """DiskError (exit 7) if the disk cannot take `needed` bytes and a tenth more."""
    available = cache.store.free_bytes()
    if available is not None and available < needed * SPARE:
        place = getattr(cache.store, "root", "the cache")
        raise DiskError(
            f"{place}: {needed * SPARE / 1e9:.2f} GB are needed and {available / 1e9:.2f} GB are free",
            fix="free some space, or choose another cache folder",
        )


@dataclass(frozen=True)
class Encoders:
    """Text encoders in one place: how they are loaded and used, and what to take instead if memory runs out there."""

    load: Callable[[], Any]
    encode: Callable[[Any, Sequence[str]], Mapping[str, Tensor]]  # loaded encoders, captions -> with a batch axis
    spare: Encoders | None = None  # on the CPU


def fill_text(
    cache: TensorCache,
    captions: Iterable[str],
    encoders: Encoders,
    *,
    batch_size: int,
    events: EventLog,
    dataset: str = "text-embeds",
) -> int:
    """Encodes the captions that the cache lacks; returns how many. Loads the encoders only then, and frees them.

    Floats are stored as bf16, masks as bytes. HardwareError (exit 5) if memory is too small in each place; the place is
    not part of a key, so what one has made stays when the next goes on.
    """
    by_key = {text_key(caption, cache.encoder): caption for caption in captions}
    cache.store.clear_leftovers()
    missing = cache.missing(by_key)
    meter = Meter(events, dataset, "text", len(by_key), len(by_key) - len(missing))
    wanted = {key: by_key[key] for key in missing}
    while wanted:
        done = _encode_texts(cache, wanted, encoders, batch_size, meter)
        free()
        if done:
            break
        if encoders.spare is None:
            raise HardwareError(f"memory ran out in the {TEXT}, one caption at a time", fix=TEXT_ADVICE)
        told(events, TEXT, "text encoders on the CPU, which takes longer")
        encoders = encoders.spare
        wanted = {key: by_key[key] for key in cache.missing(wanted)}
    return len(missing)


def _encode_texts(
    cache: TensorCache, wanted: Mapping[str, str], encoders: Encoders, batch_size: int, meter: Meter
) -> bool:
    """Writes the embeddings of `wanted` (key -> caption). False if memory ran out; what was made by then stays.

    Nothing of the encoders is referred to after it returns.
    """
    try:
        held = loaded(encoders.load)
        _write_texts(cache, wanted, lambda captions: encoders.encode(held, captions), batch_size, meter)
    except Full:
        return False
    return True


def _write_texts(
    cache: TensorCache,
    wanted: Mapping[str, str],
    encode: Callable[[Sequence[str]], Mapping[str, Tensor]],
    batch_size: int,
    meter: Meter,
) -> None:
    def rows(part: Sequence[str]) -> list[dict[str, Tensor]]:
        with torch.no_grad():
            encoded = encode([wanted[key] for key in part])
        tensors = {name: _stored(value) for name, value in encoded.items()}
        return [{name: value[i] for name, value in tensors.items()} for i in range(len(part))]

    keys = list(wanted)
    batches = Batches(batch_size, rows, TEXT, meter.events)
    with Writer(cache) as writer:
        for start in range(0, len(keys), batch_size):
            part = keys[start : start + batch_size]
            for key, tensors in zip(part, batches.run(part), strict=True):
                if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
                    fix = "use text encoders in bf16 or fp32"
                    raise DataError(f"the embedding of {wanted[key]!r} is not finite", fix=fix)
                if key == keys[0]:
                    size = sum(tensor.nbytes for tensor in tensors.values()) + HEADER_BYTES
                    check_space(cache, size * len(keys))
                writer.put(key, tensors)
            meter.add(len(part))


def _stored(value: Tensor) -> Tensor:
    """As kept on disk: floats in bf16, masks as bytes."""
    return value.detach().to("cpu", torch.bfloat16 if value.is_floating_point() else torch.uint8)


@dataclass(frozen=True)
class Latents:
    """The latents of one dataset, by sample id."""

    cache: TensorCache
    keys: Mapping[str, str]

    def read(self, sample_id: str, shape: Sequence[int] | None = None) -> Tensor:
        """(C, H, W), bf16, shifted and scaled."""
        return self.cache.read(self.keys[sample_id], {"latent": shape} if shape else None)["latent"]


class Images:
    """Encodes images for one run: loads the VAE when the first latent is missing, and knows the latent's shape.

    spare: the same in tiles, with a fingerprint of its own, for pictures with an edge above `tile` pixels.
    """

    def __init__(
        self,
        load_vae: Callable[[], Any],
        encode: Callable[[Any, Tensor, Tensor | None], Tensor],
        fingerprint: str,
        channels: int,
        factor: int,
        spare: Images | None = None,
        tile: int = 0,
    ):
        self.load_vae, self.encode, self.fingerprint = load_vae, encode, fingerprint
        self.channels, self.factor = channels, factor
        self.spare, self.tile = spare, tile
        self.vae: Any = None
        self.most: int | None = None  # images that fit into memory at once, once that is known

    def shape(self, item: Placed) -> tuple[int, int, int]:
        """(C, H, W) of the item's latent."""
        height, width = item.placement.bucket
        return self.channels, height // self.factor, width // self.factor

    def num_bytes(self, item: Placed) -> int:
        channels, height, width = self.shape(item)
        return channels * height * width * torch.bfloat16.itemsize

    def encoded(self, part: Sequence[tuple[Placed, Tensor]]) -> list[Tensor | None]:
        """Latents (C, H, W) in bf16; None for an image whose latent is not finite, in fp32 neither."""
        if self.vae is None:
            self.vae = self.load_vae()
        noise = torch.stack(
            [draw.normal(self.shape(item), "vae", item.sample.digest, placed_as(item.placement)) for item, _ in part]
        )  # (B, C, H, W)
        pixels = torch.stack([image for _, image in part])  # (B, 3, h, w), in [-1, 1]
        with torch.no_grad():
            latents = self.encode(self.vae, pixels, noise).detach().cpu()
        results: list[Tensor | None] = []
        for i, latent in enumerate(latents):
            if not torch.isfinite(latent).all():
                latent = self._in_fp32(pixels[i : i + 1], noise[i : i + 1])
            results.append(latent.to(torch.bfloat16) if torch.isfinite(latent).all() else None)
        return results

    def _in_fp32(self, pixels: Tensor, noise: Tensor) -> Tensor:
        dtype = next(self.vae.parameters()).dtype
        self.vae.float()
        try:
            with torch.no_grad():
                return self.encode(self.vae, pixels, noise)[0].detach().cpu()
        finally:
            self.vae.to(dtype)

    def close(self) -> None:
        self.vae = None
        free()


def fill_latents(library: Library, images: Images, *, events: EventLog) -> dict[str, Latents]:
    """Encodes the latents that the caches lack; returns the latents of each dataset by its id.

    Images that turn out unusable leave the library and are listed. DataError if a dataset gets too small by that,
    HardwareError (exit 5) if an image does not fit into memory. If one fits in tiles only, all are made in tiles: a run
    does not mix the two.
    """
    if images.spare and any(tiled_instead(shelf.dataset.cache, images.fingerprint) for shelf in library.shelves):
        message = "latents are made in tiles, since memory ran out without, once"
        mark = f"{images.fingerprint[:ENCODER_LETTERS]}/{TILED}"
        events.warn("tiled", message, f"vae_enable_tiling=true says so; delete {mark} in the cache to try without")
        images = images.spare
    found = _fill(library, images, events)
    if found is None:
        assert images.spare
        told(events, IMAGES, "tiling, for all images; vae_enable_tiling=true does it from the start")
        found = _fill(library, images.spare, events)
        assert found is not None
        for shelf in library.shelves:
            store = TensorCache.at(shelf.dataset.cache, images.fingerprint, "vae").store
            store.write(TILED, TILED_MEANS)
            store.sync()
    library.check(events)
    return found


def _fill(library: Library, images: Images, events: EventLog) -> dict[str, Latents] | None:
    """The same with these `images`; None if one does not fit and their spare ones may do."""
    found: dict[str, Latents] = {}
    try:
        for shelf in library.shelves:
            shelf.hash()
            if shelf.mended:
                message = f"dataset {shelf.id}: {len(shelf.mended)} sizes of the table are wrong: {shelf.mended[0]}"
                events.warn("sizes-mended", message, fix="the sizes of the files are used; mend the table")
                shelf.mended.clear()
            sync_every = shelf.dataset.entry.write_batch_size
            cache = TensorCache.at(shelf.dataset.cache, images.fingerprint, "vae", sync_every)
            keys = {s.id: latent_key(s.digest, p, images.fingerprint) for s, p in shelf.items}
            _fill_shelf(shelf, cache, keys, images, events)
            found[shelf.id] = Latents(cache, keys)
    except Full as full:
        item: Placed = full.item[0]
        size = item.placement.bucket
        if images.spare is None or max(size) <= images.tile:  # a tile would be the whole picture
            message = f"{item.sample.path}: memory ran out while it was encoded by itself, at {size}"
            raise HardwareError(message, fix=IMAGE_ADVICE) from None
        return None
    finally:
        images.close()
    return found


def _fill_shelf(shelf: Shelf, cache: TensorCache, keys: Mapping[str, str], images: Images, events: EventLog) -> None:
    cache.store.clear_leftovers()
    missing = set(cache.missing(keys.values()))
    meter = Meter(events, shelf.id, "vae", len(set(keys.values())), len(set(keys.values())) - len(missing))
    wanted = {keys[item.sample.id]: item for item in shelf.items if keys[item.sample.id] in missing}
    jobs = sorted(wanted.values(), key=lambda item: (item.placement.bucket, item.sample.id))
    if not jobs:
        return
    check_space(cache, sum(images.num_bytes(item) + HEADER_BYTES for item in jobs))
    entry = shelf.dataset.entry
    size = min(entry.vae_batch_size, images.most or entry.vae_batch_size)
    batches = Batches(size, images.encoded, IMAGES, events)
    notes: list[str] = []
    ready: list[tuple[Placed, Tensor]] = []
    unusable: list[LeftOut] = []
    bad_values: list[LeftOut] = []

    def flush(writer: Writer) -> None:
        for (item, _), latent in zip(ready, batches.run(ready), strict=True):
            if latent is None:
                bad_values.append(LeftOut(item.sample.path, "non-finite-latent", images.fingerprint[:12]))
            else:
                writer.put(keys[item.sample.id], {"latent": latent})
        meter.add(len(ready))
        ready.clear()

    with Writer(cache) as writer:
        for item, image in _decoded(shelf, jobs, notes):
            if ready and (len(ready) >= batches.size or ready[0][0].placement.bucket != item.placement.bucket):
                flush(writer)
            if isinstance(image, Rejected):
                same = [
                    i for i in shelf.items if keys[i.sample.id] == keys[item.sample.id]
                ]  # the file may lie there twice
                unusable += [LeftOut(i.sample.path, image.reason, image.detail) for i in same]
                meter.add(1)
            else:
                ready.append((item, image))
        flush(writer)
    images.most = batches.size if batches.size < entry.vae_batch_size else images.most
    shelf.leave_out(unusable)
    shelf.leave_out(bad_values, remember=False)  # another VAE may do better
    _tell_notes(shelf, notes, unusable + bad_values, events)


def _decoded(shelf: Shelf, jobs: Sequence[Placed], notes: list[str]) -> Iterable[tuple[Placed, Tensor | Rejected]]:
    """The training images of `jobs` in order, decoded ahead on threads."""
    entry = shelf.dataset.entry

    def work(item: Placed) -> Tensor | Rejected:
        try:
            data = shelf.source.read(item.sample.path)
            if hashlib.sha256(data).hexdigest() != item.sample.digest:
                raise Rejected("unreadable", "changed while it was read")
            return prepare(data, item.placement, notes, shelf.dataset.pixel_limit)
        except Rejected as error:
            return error
        except OSError as error:
            return Rejected("unreadable", error.strerror or str(error))

    return ahead(
        jobs,
        work,
        workers=threads(entry.max_workers),
        limit=max(entry.image_processing_batch_size, 2 * entry.vae_batch_size),
        cost=lambda item: max(h * w for h, w in (item.sample.size, item.placement.resize)) * BYTES_PER_PIXEL,
        most_cost=DECODE_BYTES,
    )


def _tell_notes(shelf: Shelf, notes: Sequence[str], left_out: Sequence[LeftOut], events: EventLog) -> None:
    for note, meaning in NOTES.items():
        if count := notes.count(note):
            message = f"dataset {shelf.id}: {count} images {meaning}"
            events.emit("warning", "notice", code=note, message=message, fix="")
    if left_out:
        names = ", ".join(f"{item.path} ({item.reason})" for item in left_out[:3])
        message = f"dataset {shelf.id}: {len(left_out)} images cannot be used: {names}"
        events.warn(
            "images-left-out", message, fix=f"all are listed in {shelf.dataset.cache}/rejected-{shelf.id}.jsonl"
        )
