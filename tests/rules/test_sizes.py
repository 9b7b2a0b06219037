import pytest
from rules.cases import Case, speaks_only_when_broken

from simpletuner.rules import sizes

MINIMUM, MAXIMUM, TARGET = sizes.MINIMUM, sizes.MAXIMUM, sizes.TARGET
UNIT, FILE = ("resolution", "resolution_type"), "data_backend_config"
CASES = [
    Case(3, sizes.sizes_together, {MAXIMUM: 2048}, "belong together", (MAXIMUM, TARGET), {TARGET: 1024}),
    Case(3, sizes.sizes_together, {TARGET: 1024}, "belong together", (MAXIMUM, TARGET), {MAXIMUM: 2048}),
    Case(4, sizes.sizes_in_order, {MINIMUM: 2000, MAXIMUM: 1500, TARGET: 1024}, "no image could pass",
         (MINIMUM, MAXIMUM), {MINIMUM: 1500}),
    Case(4, sizes.sizes_in_order, {MAXIMUM: 1500, TARGET: 2000}, "images would grow", (MAXIMUM, TARGET),
         {TARGET: 1500}),
    Case(5, sizes.area_is_in_megapixels, {"resolution_type": "area"}, "megapixels", UNIT, {"resolution": 20}),
    Case(5, sizes.area_is_in_megapixels, {"resolution_type": "area"}, "megapixels", UNIT,
         {"resolution_type": "pixel_area"}),
    Case(6, sizes.edge_is_in_pixels, {"resolution": 255}, "below 256 pixels", UNIT, {"resolution": 256}),
    Case(6, sizes.edge_is_in_pixels, {"resolution": 1, "resolution_type": "pixel"}, "below 256", UNIT,
         {"resolution_type": "area"}),
    Case(6, sizes.edge_is_in_pixels, {"resolution": 64}, "below 256", UNIT, {"model_flavour": "nano"}),
    Case(7, sizes.dataset_file_is_there, {FILE: "none.json"}, "no dataset file at", (FILE,), {FILE: None}),
    Case(7, sizes.dataset_file_is_there, {FILE: "config"}, "is a folder", (FILE,),
         {FILE: "config/multidatabackend.json"}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sizes(case, config):
    speaks_only_when_broken(case, config)


def test_both_orders_are_told_at_once(config):
    assert len(list(sizes.sizes_in_order(config({MINIMUM: 9, MAXIMUM: 5, TARGET: 6})))) == 2


def test_a_missing_dataset_file_leads_to_the_wizard(config):
    assert "simpletuner configure" in sizes.dataset_file_is_there(config({FILE: "none.json"})).fix
