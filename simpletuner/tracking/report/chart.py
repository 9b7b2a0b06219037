"""Line charts as inline SVG, in colours that the page's style sheet decides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

Points = Sequence[tuple[float, float]]  # (step, value), steps rising

MOST_POINTS = 600  # of one line; more would not show
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 12, 28  # pixels around the plot
ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)  # between two ticks, times a power of ten
OUTLIERS = 0.01  # share of a noisy line that may leave the plot at either side
MARGIN = 0.06  # of the plot's height, above and below the lines


class Line(NamedTuple):
    points: Points
    style: str  # a class of the style sheet: "raw" is faint, and may leave the plot


def smoothed(points: Points) -> Points:
    """Each value as the mean of those around it, a twentieth of the line together; the ends have fewer on one side."""
    half = len(points) // 40
    sums = [0.0, *itertools.accumulate(y for _, y in points)]
    spans = [(max(0, i - half), min(len(points), i + half + 1)) for i in range(len(points))]
    return [(x, (sums[end] - sums[begin]) / (end - begin)) for (x, _), (begin, end) in zip(points, spans, strict=True)]


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most `most` points, each the mean of its neighbours."""
    size = max(1, -(-len(points) // most))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * factor for factor in ROUND), key=lambda step: abs(math.log(step / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def spread(lines: Sequence[Line]) -> tuple[float, float]:
    """(lowest, highest) value of the plot: a few outliers of a raw line are left out, no point of another is."""
    values: list[float] = []
    for line in lines:
        ordered = sorted(y for _, y in line.points)
        cut = int(len(ordered) * OUTLIERS) if line.style == "raw" else 0
        values += ordered[cut : len(ordered) - cut]
    low, high = min(values), max(values)
    margin = (high - low) * MARGIN or abs(high) * 0.1 or 1.0
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin


def chart(lines: Sequence[Line], *, label: str, width: int, height: int) -> str:
    """An <svg> that fills its place; empty if there is nothing to draw."""
    lines = [Line(thinned(line.points), line.style) for line in lines if line.points]
    if not lines:
        return ""
    low, high = spread(lines)
    first = min(line.points[0][0] for line in lines)
    last = max(first + 1, *(line.points[-1][0] for line in lines))

    def across(x: float) -> str:
        return f"{LEFT + (x - first) / (last - first) * (width - LEFT - RIGHT):.1f}"

    def down(y: float) -> str:
        return f"{TOP + (high - y) / (high - low) * (height - TOP - BOTTOM):.1f}"

    name, right, floor = f"plot-{'-'.join(label.lower().split())}", width - RIGHT, height - BOTTOM
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">',
        f'<clipPath id="{escape(name)}"><rect x="{LEFT}" y="0" width="{right - LEFT}" height="{floor}"/></clipPath>',
    ]
    for tick in ticks(low, high, max(2, height // 50)):
        y = down(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y}" text-anchor="end" dy=".32em">{tick:.6g}</text>')
    for tick in ticks(first, last, max(2, width // 100)):
        parts.append(f'<text class="tick" x="{across(tick)}" y="{height - 8}" text-anchor="middle">{tick:.6g}</text>')
    for points, style in lines:
        drawn = [*points, *points] if len(points) == 1 else points  # a line to itself shows a single point as a dot
        path = " ".join(f"{across(x)},{down(y)}" for x, y in drawn)
        parts.append(f'<polyline class="{style}" clip-path="url(#{escape(name)})" points="{path}"/>')
    return "".join([*parts, "</svg>"])
