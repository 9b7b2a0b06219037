"""From an image's size to its placement: whole numbers, decided without pixels (data.md section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import NamedTuple

from simpletuner.data.options import ImageEntry
from simpletuner.diffusion import draw
from simpletuner.types import Placement, Size

MAX_ENLARGEMENT_DECIMALS = 2


class Fit(NamedTuple):
    """A bucket that an image may go to, and its size before the crop."""

    aspect: float
    weight: float
    target: Size
    resize: Size


@dataclass(frozen=True)
class Shape:
    """What decides a placement besides the image: the dataset's options, and what they share."""

    entry: ImageEntry
    aspects: tuple[tuple[float, float], ...] = ()  # (width/height, weight) of crop_aspect_buckets
    alignment: int = 64  # edges are multiples of it
    rounding: int = 2  # decimals of an aspect
    seen: dict[Size, list[Fit] | str] = field(default_factory=dict, compare=False)  # most sets have few sizes

    def round_edge(self, value: float) -> int:
        return max(round(value / self.alignment) * self.alignment, self.alignment)

    def aspect(self, size: Size) -> float:
        """Width/height, rounded; never 0, however narrow the image."""
        return round(size.width / size.height, self.rounding) or 10.0**-self.rounding


def square_pixels(value: float, unit: str) -> float:
    """Area in pixels of a size given in `unit`: area is megapixels, pixel and pixel_area are the edge of a square."""
    return value * 1e6 if unit == "area" else value * value


def edge(value: float, unit: str, shape: Shape) -> int:
    """Edge of the square that `value` stands for, in whole pixels: aligned, but for the unit pixel."""
    if unit == "pixel":
        return int(value)
    return shape.round_edge(int(sqrt(value * 1e6)) if unit == "area" else value)


def fit_area(size: Size, aspect: float, edge: int, shape: Shape) -> tuple[Size, Size]:
    """(target, resize) for a target of about edge x edge pixels with the given aspect. resize covers target."""
    raw = size.width / size.height
    if aspect == 1.0 and size.width == size.height:
        return Size(edge, edge), Size(edge, edge)
    width, height = shape.round_edge(edge * sqrt(aspect)), shape.round_edge(edge / sqrt(aspect))
    if width < height:
        wide, high = width, int(width / raw)
    else:
        wide, high = int(height * raw), height
    if wide < width:
        wide, high = width, high + int((width - wide) / raw)
    elif high < height:
        wide, high = wide + int((height - high) * raw), height
    return Size(height, width), Size(max(high, height), max(wide, width))


def fit_shorter_edge(size: Size, aspect: float, edge: int, shape: Shape) -> tuple[Size, Size]:
    """(target, resize) for a target whose shorter edge is about `edge` pixels. resize covers target."""
    raw = size.width / size.height
    exact_width, exact_height = (edge, int(edge / aspect)) if aspect < 1 else (int(edge * aspect), edge)
    width, height = shape.round_edge(exact_width), shape.round_edge(exact_height)
    if size.width >= size.height:
        high = max(height, exact_height)
        wide = int(high * raw)
        if wide < width:
            wide, high = width, int(width / raw)
    else:
        wide = max(width, exact_width)
        high = int(wide / raw)
        if high < height:
            wide, high = int(height * raw), height
    return Size(height, width), Size(max(high, height), max(wide, width))


def fit(size: Size, aspect: float, value: float, shape: Shape) -> tuple[Size, Size]:
    """(target, resize) of an image at training size `value`, in the dataset's unit."""
    unit = shape.entry.resolution_type
    method = fit_shorter_edge if unit == "pixel" else fit_area
    return method(size, aspect, edge(value, unit, shape), shape)


def too_small(size: Size, entry: ImageEntry) -> bool:
    least = entry.minimum_image_size
    if not least:
        return False
    shorter = min(size)
    if entry.resolution_type == "pixel":
        return shorter < least
    area = square_pixels(least, entry.resolution_type)
    square = entry.crop and entry.crop_aspect == "square"
    return size.width * size.height < area or (square and shorter < int(sqrt(area)))


def above_maximum(size: Size, entry: ImageEntry) -> bool:
    most = entry.maximum_image_size
    if not most:
        return False
    if entry.resolution_type == "pixel":
        return min(size) > most
    return size.width * size.height > square_pixels(most, entry.resolution_type)


def window(size: Size, target: Size, shape: Shape) -> Size:
    """The picture that a crop of `target` is cut from: the image at target_downsample_size, at least `target`."""
    downsample = shape.entry.target_downsample_size
    assert downsample
    _, (high, wide) = fit(size, shape.aspect(size), downsample, shape)
    if wide < target.width:
        wide, high = target.width, high * target.width // wide
    if high < target.height:
        wide, high = wide * target.height // high, target.height
    return Size(high, wide)


def enlargement(size: Size, resize: Size) -> float:
    """Share by which the image grows; negative if it shrinks."""
    return round(max(resize.width / size.width, resize.height / size.height) - 1, MAX_ENLARGEMENT_DECIMALS)


def place(size: Size, shape: Shape, *, id: str, path: str, variant: int = 0) -> Placement | str:
    """The placement of one image, or the reason why it is left out (data.md section 5).

    It depends on this image alone, never on the rest of the set. `id` and `path` address the random crops.
    """
    fits = shape.seen.get(size)
    if fits is None:
        fits = shape.seen[size] = _fits(size, shape)
    if isinstance(fits, str):
        return fits
    chosen = fits[_choose([(one.aspect, one.weight) for one in fits], size, shape, (id, path, variant))]
    return Placement(
        chosen.resize, _corner(chosen.resize, chosen.target, shape.entry, (id, path, variant)), chosen.target
    )


def _fits(size: Size, shape: Shape) -> list[Fit] | str:
    """The ways in which images of a size can be used, or the reason why there is none."""
    entry = shape.entry
    raw = size.width / size.height
    if too_small(size, entry):
        return "too-small"
    if (entry.minimum_aspect_ratio and raw < entry.minimum_aspect_ratio) or (
        entry.maximum_aspect_ratio and raw > entry.maximum_aspect_ratio
    ):
        return "aspect-out-of-range"
    fits = []
    for aspect, weight in _aspects(size, shape):
        target, resize = fit(size, aspect, entry.resolution, shape)
        if entry.crop and above_maximum(size, entry):
            resize = window(size, target, shape)
        if entry.max_upscale_threshold is None or enlargement(size, resize) <= entry.max_upscale_threshold:
            fits.append(Fit(aspect, weight, target, resize))
    return fits or "needs-upscale"


def _aspects(size: Size, shape: Shape) -> Sequence[tuple[float, float]]:
    """The aspects that the image may take, with weights."""
    entry = shape.entry
    if not entry.crop or entry.crop_aspect == "preserve":
        return [(shape.aspect(size), 1.0)]
    return [(1.0, 1.0)] if entry.crop_aspect == "square" else shape.aspects


def _choose(aspects: Sequence[tuple[float, float]], size: Size, shape: Shape, address: tuple[str, str, int]) -> int:
    """Index of the aspect that the image takes."""
    if len(aspects) == 1:
        return 0
    if shape.entry.crop_aspect == "closest":
        own = shape.aspect(size)
        return min(range(len(aspects)), key=lambda i: (abs(aspects[i][0] - own), aspects[i][0]))
    rest = draw.uniform("aspect", *address) * sum(weight for _, weight in aspects)
    for i, (_, weight) in enumerate(aspects):
        rest -= weight
        if rest < 0:
            return i
    return len(aspects) - 1  # the sum of weights was rounded


def _corner(resize: Size, target: Size, entry: ImageEntry, address: tuple[str, str, int]) -> tuple[int, int]:
    """(top, left) of the crop."""
    down, across = resize.height - target.height, resize.width - target.width
    style = entry.crop_style if entry.crop else "center"
    if style == "corner":
        return 0, 0
    if style == "center":
        return down // 2, across // 2
    return draw.integer(down + 1, "crop", *address, "top"), draw.integer(across + 1, "crop", *address, "left")
