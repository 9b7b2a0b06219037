"""The arithmetic that a run asks for, in floating-point operations: what times are compared and foretold by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simpletuner.adapters.kinds import KINDS
from simpletuner.config import Config
from simpletuner.data.library import Library
from simpletuner.data.sampling import shares
from simpletuner.memory.options import Memory
from simpletuner.models.options import Model
from simpletuner.models.shapes import Shapes
from simpletuner.training.options import Training
from simpletuner.types import Size
from simpletuner.validation.shots import Shot

ENCODE = 25_000  # operations of a Flux VAE's encoder per pixel and million weights
TIME = "time"  # layers that read it work once for a picture, not once for a token


@dataclass(frozen=True)
class Work:
    """Operations of one of each, on average."""

    step: float  # one optimizer step
    image: float  # one validation image, without decoding
    text: float
    latent: float
    step_blocks: float = 0.0  # passes through a block in one optimizer step: each costs its launches, however small
    image_blocks: float = 0.0  # in one validation image


def of(config: Config, shapes: Shapes, library: Library, shots: Sequence[Shot]) -> Work:
    """Zero for what the run has none of."""
    batches = _batches(library)
    count = sum(number for _, number, _ in batches) or 1
    batch = sum(number * size * _passes(config) * forward(shapes, bucket) for bucket, number, size in batches) / count
    passes = [shot.steps * (1 + (shot.guidance_real > 1)) for shot in shots]
    images = [number * forward(shapes, shot.size) for number, shot in zip(passes, shots, strict=True)]
    accumulation, blocks = config[Training].gradient_accumulation_steps, sum(stack.count for stack in shapes.stacks)
    pixels = [item.placement.bucket.area for shelf in library.shelves for item in shelf.items]
    return Work(
        step=batch * accumulation,
        image=sum(images) / len(images) if images else 0.0,
        text=2.0 * shapes.encoders * shapes.text_tokens,
        latent=ENCODE * shapes.vae / 1e6 * sum(pixels) / len(pixels) if pixels else 0.0,
        step_blocks=accumulation * _passes(config) * blocks,
        image_blocks=blocks * sum(passes) / len(passes) if passes else 0.0,
    )


def mean_pixels(library: Library) -> float:
    """Of a training picture, over an epoch."""
    batches = _batches(library)
    count = sum(number * size for _, number, size in batches)
    return sum(number * size * bucket.area for bucket, number, size in batches) / count if count else 0.0


def _batches(library: Library) -> list[tuple[Size, int, int]]:
    """(bucket, micro-batches of it in an epoch, pictures in each)."""
    return [
        (_size(bucket), share.batches, shelf.batch_size)
        for shelf in library.shelves
        for bucket, share in shares(shelf.pool()).items()
    ]


def forward(shapes: Shapes, size: Size) -> float:
    """One pass of the transformer over one picture: two operations a weight and token, and those of attention."""
    tokens = shapes.tokens(*size)
    reads: Mapping[str, Mapping[str, str]] = {stack.name: stack.reads for stack in shapes.stacks}
    weights = 0
    for path, (out, into) in shapes.layers.items():
        stack, _, rest = path.partition(".")
        name = rest.partition(".")[2]
        weights += out * into * (reads.get(stack, {}).get(name) != TIME)
    blocks = sum(stack.count for stack in shapes.stacks)
    return 2.0 * weights * tokens + 4.0 * blocks * shapes.width * tokens**2


def _passes(config: Config) -> float:
    """Forward passes that training costs: backward once through the layers, twice where all weights are trained."""
    backward = 1 if KINDS[config[Model].model_type].base_stays else 2
    memory = config[Memory]
    again = 1 / memory.gradient_checkpointing_interval if memory.gradient_checkpointing else 0
    return 1 + backward + again


def _size(bucket: str) -> Size:
    width, height = bucket.split("x")
    return Size(int(height), int(width))
