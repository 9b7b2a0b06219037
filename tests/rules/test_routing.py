import pytest
from rules.cases import Case, speaks_only_when_broken

from simpletuner.rules import routing

KEY = routing.KEY
LAST = 56  # of FLUX.1's 57 blocks


def tread(*routes):
    return {KEY: {"routes": list(routes)}}


def route(ratio=0.5, start=2, end=-2, **more):
    return {"selection_ratio": ratio, "start_layer_idx": start, "end_layer_idx": end, **more}


def sound(broken, said, mended=None):
    return Case(44, routing.routes_are_sound, broken, said, (KEY,), mended or tread(route()))


def spares(broken, said, mended):
    return Case(45, routing.routes_spare_the_ends, broken, said, (KEY,), mended, "notice")


CASES = [
    sound({KEY: {}}, "has no list of routes", {KEY: None}),
    sound(tread(), "has no list of routes"),
    sound(tread(route(1.5)), "route 1: selection_ratio 1.5 is not a number from 0 to 1", tread(route(1.0))),
    sound(tread(route(-0.1)), "selection_ratio -0.1", tread(route(0))),
    sound(tread(route("half")), "selection_ratio 'half'"),
    sound(tread(route(importance=2)), "importance 2", tread(route(importance=0.5))),
    sound(tread({"start_layer_idx": 2, "end_layer_idx": -2}), "selection_ratio is missing"),
    sound(tread(route(), route(end=57)), "route 2: end_layer_idx 57 is no layer", tread(route(end=LAST))),
    sound(tread(route(start=-58)), "start_layer_idx -58", tread(route(start=-57))),
    sound(tread(route(end=float("inf"))), "end_layer_idx inf", tread(route(end=9))),
    sound(tread(route(start=2.5)), "start_layer_idx 2.5", tread(route(start=2.0))),
    sound(tread(route(start=9, end=8)), "starts at layer 9, after its end at 8", tread(route(start=8, end=8))),
    sound(tread(route(start=-2, end=-3)), "starts at layer 55, after its end at 54"),
    sound(tread(route(end=9), route(start=9)), "routes 1 and 2 overlap, in layers 9 to 9",
          tread(route(end=9), route(start=10))),
    sound(tread(route(start=9), route(end=9)), "routes 1 and 2 overlap, in layers 9 to 9"),
    sound(tread("all"), "route 1: is not an object"),
    sound(tread(route(start_layer=3)), 'unknown key "start_layer"'),
    spares(tread(route(start=1)), "covers the first two layers", tread(route(start=2))),
    spares(tread(route(end=-1)), "covers the last layer", tread(route(end=-2))),
    spares(tread(route(end=LAST)), "route 1 covers the last layer", {KEY: None}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_routing(case, config):
    speaks_only_when_broken(case, config)


def test_layers_are_those_of_the_chosen_model(config):
    small = {"model_flavour": "nano"} | tread(route(end=7))
    (problem,) = routing.routes_are_sound(config(small))
    assert "end_layer_idx 7 is no layer of this model, which has 7" in problem.message
    assert list(routing.routes_are_sound(config(small | tread(route(end=6))))) == []


def test_every_fault_of_every_route_is_told_at_once(config):
    found = list(routing.routes_are_sound(config(tread(route(2, 99, 100), route(), route()))))
    assert [p.message.split(":")[1].strip() for p in found[:3]] == ["route 1"] * 3
    assert "routes 2 and 3 overlap" in found[3].message and len(found) == 4
