"""Makes images with the memory there is: in tiles, decoded on the CPU, at half the edge, or not at all."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from simpletuner.errors import Stopped
from simpletuner.events import EventLog
from simpletuner.protocols import Sampler, SampleRequest
from simpletuner.types import Size
from simpletuner.validation.shots import Shot

if TYPE_CHECKING:
    from PIL.Image import Image

TILE = 512  # pixels; the VAE's own tile of 1024 would leave a 1024x1024 image whole
LATENT_TILE = TILE // 8


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that an accelerator or the host has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Whatever is drawn inside, the global generators of Python, NumPy and torch then go on as if nothing had been."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _plain(vae: nn.Module) -> Iterator[None]:
    yield


@contextmanager
def _tiled(vae: Any) -> Iterator[None]:
    names = [name for name in ("use_tiling", "tile_sample_min_size", "tile_latent_min_size") if hasattr(vae, name)]
    before = {name: getattr(vae, name) for name in names}
    try:
        for name, value in zip(names, (True, TILE, LATENT_TILE), strict=False):
            setattr(vae, name, value if value is True else min(value, before[name]))
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)


@contextmanager
def _on_cpu(vae: nn.Module) -> Iterator[None]:
    parameter = next(vae.parameters())
    device, dtype = parameter.device, parameter.dtype
    vae.to("cpu")
    nn.Module.to(vae, dtype=torch.float32)  # halves are slow or missing on CPUs; diffusers' own cast warns each time
    try:
        with _tiled(vae):
            yield
    finally:
        nn.Module.to(vae, dtype=dtype)
        vae.to(device)


RUNGS = (("whole", _plain), ("in tiles", _tiled), ("on the CPU", _on_cpu))


class ImageMaker:
    """Turns shots into images: first all latents, then the VAE is loaded, used and let go.

    `embed` gives the cached embeddings of one text (batch axis 1), `latent_shape` (1, C, H, W) of an image size.
    `stage` makes room for the VAE while it decodes. What did not fit once is not tried again.
    """

    def __init__(
        self,
        *,
        sampler: Sampler,
        load_vae: Callable[[], nn.Module],
        free: Callable[[], Any],
        embed: Callable[[str], Mapping[str, Tensor]],
        latent_shape: Callable[[Size], tuple[int, int, int, int]],
        events: EventLog,
        stopping: Callable[[], bool],
        stage: Callable[[nn.Module], AbstractContextManager[Any]] = _plain,
    ):
        self.sampler, self.load_vae, self.free = sampler, load_vae, free
        self.embed, self.latent_shape = embed, latent_shape
        self.events, self.stopping, self.stage = events, stopping, stage
        self.rung = 0
        self.too_large: set[Size] = set()

    def make(
        self,
        shots: Sequence[Shot],
        adapter: Callable[[Shot], AbstractContextManager[None]],
        keep: Callable[[Shot, Image], None],
        sampled: Callable[[int, int], None],
    ) -> None:
        """Hands every image it can make to `keep`; `adapter` sets a shot's weights, `sampled` hears (done, total)."""
        with untouched_generators(), torch.no_grad():
            while shots:
                shots = self._decode(self._sample(shots, adapter, sampled), keep)

    @contextmanager
    def forgiving(self, what: str) -> Iterator[None]:
        """Turns any failure inside into a warning: an image is not worth a run."""
        try:
            yield
        except Stopped:
            raise
        except Exception as error:
            code, fix = "validation_skipped", ""
            if out_of_memory(error):
                code, fix = "validation_memory", "lower validation_resolution or validation_guidance_real"
            self.events.warn(code, f"{what}: left out: {type(error).__name__}: {error}", fix)

    def _sample(
        self, shots: Sequence[Shot], adapter: Callable, sampled: Callable[[int, int], None]
    ) -> list[tuple[Shot, Tensor]]:
        self.free()
        pairs: list[tuple[Shot, Tensor]] = []
        for done, shot in enumerate(shots, 1):
            if self.stopping():
                break
            if shot.size == shot.asked and shot.size in self.too_large:
                shot = shot.halved()
            with self.forgiving(f"image of {shot.prompt.nickname} {shot.size}"), adapter(shot):
                pairs.append(self._fitting_latents(shot))
            sampled(done, len(shots))
        return pairs

    def _fitting_latents(self, shot: Shot) -> tuple[Shot, Tensor]:
        """Latents of the shot, or of its half if the whole does not fit."""
        try:
            return shot, self._latents(shot)
        except Exception as error:
            if not out_of_memory(error) or shot.size != shot.asked:
                raise
        self.free()  # outside the handler: its traceback would hold the tensors
        half = self._smaller(shot)
        return half, self._latents(half)

    def _smaller(self, shot: Shot) -> Shot:
        """Its half, from now on for every image of that size; said once."""
        half = shot.halved()
        if shot.asked not in self.too_large:
            self.too_large.add(shot.asked)
            message = f"no memory for a validation image of {shot.asked}: {half.size} is made instead"
            self.events.warn("validation_memory", message, "lower validation_resolution")
        return half

    def _latents(self, shot: Shot) -> Tensor:
        """(1, C, H, W), fp32, on the CPU; from the noise that diffusers draws for the same number."""
        noise = torch.randn(self.latent_shape(shot.size), generator=torch.Generator("cpu").manual_seed(shot.number))
        negative = None if shot.negative is None else self.embed(shot.negative)
        request = SampleRequest(
            self.embed(shot.prompt.text),
            negative,
            shot.size,
            shot.steps,
            shot.guidance,
            shot.guidance_real,
            shot.skip_real_steps,
            noise,
        )
        latents = self.sampler.latents(request).to("cpu", torch.float32)
        if not torch.isfinite(latents).all():
            raise FloatingPointError("the model gave numbers that are not finite")
        return latents

    def _decode(self, pairs: list[tuple[Shot, Tensor]], keep: Callable[[Shot, Image], None]) -> list[Shot]:
        """Decodes and keeps; gives back those that have to be sampled again at half the edge."""
        again: list[Shot] = []
        if not pairs:
            return again
        with ExitStack() as stack:
            stack.callback(self.free)
            stack.enter_context(self.forgiving(f"{len(pairs)} images"))
            vae = self.load_vae()
            stack.enter_context(self.stage(vae))
            for shot, latents in pairs:
                if self.stopping():
                    break
                with self.forgiving(f"image of {shot.prompt.nickname} {shot.size}"):
                    image = self._fitting_decode(vae, latents)
                    if image is not None:
                        keep(shot, image)
                    elif shot.size == shot.asked:
                        again.append(self._smaller(shot))
                    else:
                        raise MemoryError("no memory to decode it, not even at half the edge")
            del vae  # before free, so that the memory really comes back
        return again

    def _fitting_decode(self, vae: nn.Module, latents: Tensor) -> Image | None:
        """The image, by the first rung that has room; None if none has."""
        while True:
            where = RUNGS[self.rung][1]
            try:
                with where(vae):
                    return self.sampler.decode(vae, latents)
            except Exception as error:
                if not out_of_memory(error):
                    raise
            self.free()
            if self.rung + 1 == len(RUNGS):
                return None
            self.rung += 1
            message = f"no memory to decode a validation image: from now on they are decoded {RUNGS[self.rung][0]}"
            self.events.warn("validation_memory", message, "lower validation_resolution, or set vae_enable_tiling")
