"""TREAD: the routes on which a part of the image tokens passes some blocks by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from simpletuner.config import Config
from simpletuner.diffusion.options import Objective
from simpletuner.errors import Problem
from simpletuner.models import families
from simpletuner.models.options import Model
from simpletuner.reading import canonical_key
from simpletuner.registry import did_you_mean
from simpletuner.rules.findings import error, notice

KEY = "tread_config"
RATIO, START, END = "selection_ratio", "start_layer_idx", "end_layer_idx"
KNOWN = (RATIO, START, END, "importance", "route_reference_tokens")
EXAMPLE = '{"routes": [{"selection_ratio": 0.5, "start_layer_idx": 2, "end_layer_idx": -2}]}'
EARLY = 1  # the last of the first layers, whose output everything rests on


@dataclass(frozen=True)
class Route:
    """One that could be read; layers are counted from 0, and the last one is part of it."""

    number: int  # for people, from 1
    start: int
    end: int


def routes_are_sound(config: Config) -> Iterator[Problem]:
    if config[Objective].tread_config is None:
        return
    listed, blocks = _written(config), _num_blocks(config)
    if not listed:
        yield error(f"{KEY} has no list of routes", KEY, fix=EXAMPLE)
        return
    routes = []
    for number, written in enumerate(listed, 1):
        route, wrong = _route(number, written, blocks)
        yield from (error(f"{KEY}: route {number}: {message}", KEY, fix=fix) for message, fix in wrong)
        routes += [route] if route else []
    for index, route in enumerate(routes):
        for other in routes[:index]:
            if route.start <= other.end and other.start <= route.end:
                message = f"{KEY}: routes {other.number} and {route.number} overlap, in layers {_shared(route, other)}"
                yield error(message, KEY, fix="end one before the other starts")


def routes_spare_the_ends(config: Config) -> Iterator[Problem]:
    for number, written in enumerate(_written(config), 1):
        blocks = _num_blocks(config)
        route, _ = _route(number, written, blocks)
        if route and (route.start <= EARLY or route.end == blocks - 1):
            ends = "the first two layers" if route.start <= EARLY else "the last layer"
            fix = f"start at {EARLY + 1} or later, and end at -2 or earlier"
            yield notice(f"{KEY}: route {number} covers {ends}: quality usually suffers there", KEY, fix=fix)


def _written(config: Config) -> list[Any]:
    """The routes as they were given, readable or not."""
    value = config[Objective].tread_config
    listed = value.get("routes") if isinstance(value, Mapping) else None
    return listed if isinstance(listed, list) else []


def _num_blocks(config: Config) -> int:
    model = config[Model]
    return sum(stack.count for stack in families()[model.model_family].shapes(model).stacks)


def _route(number: int, written: Any, blocks: int) -> tuple[Route | None, list[tuple[str, str]]]:
    """(the route, what is wrong with it with its cure); None where its layers cannot be told."""
    if not isinstance(written, Mapping):
        return None, [("is not an object", EXAMPLE)]
    given = {canonical_key(key): value for key, value in written.items()}
    wrong = [(f'unknown key "{key}"', did_you_mean(key, KNOWN)) for key in given if key not in KNOWN]
    wrong += [(f"{key} is missing", EXAMPLE) for key in (RATIO, START, END) if key not in given]
    for key in (RATIO, "importance"):
        if key in given and not (_is_number(given[key]) and 0 <= given[key] <= 1):
            wrong.append((f"{key} {given[key]!r} is not a number from 0 to 1", f"{RATIO} 0.5 drops half of the tokens"))
    layers = [_layer(given.get(key), blocks) for key in (START, END)]
    for key, layer in zip((START, END), layers, strict=True):
        if layer is None and key in given:
            fix = f"give a layer from 0 to {blocks - 1}, or count from the end with -1 to {-blocks}"
            wrong.append((f"{key} {given[key]!r} is no layer of this model, which has {blocks}", fix))
    start, end = layers
    if start is None or end is None:
        return None, wrong
    if start > end:
        return None, [*wrong, (f"starts at layer {start}, after its end at {end}", f"swap {START} and {END}")]
    return Route(number, start, end), wrong


def _layer(value: Any, blocks: int) -> int | None:
    """A layer counted from 0; a negative one counts from the end."""
    if not _is_number(value) or not -blocks <= value < blocks or value != int(value):
        return None
    return int(value) % blocks


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shared(route: Route, other: Route) -> str:
    return f"{max(route.start, other.start)} to {min(route.end, other.end)}"
