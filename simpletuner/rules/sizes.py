"""How large the training images are, and the file that names them."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config import Config
from simpletuner.data.datasets import LEAST_EDGE_CELLS, MAX_MEGAPIXELS
from simpletuner.data.options import Data
from simpletuner.errors import Problem
from simpletuner.models import families
from simpletuner.models.options import Model
from simpletuner.rules.findings import error

MINIMUM, MAXIMUM, TARGET = "minimum_image_size", "maximum_image_size", "target_downsample_size"


def sizes_together(config: Config) -> Problem | None:
    data = config[Data]
    if bool(data.maximum_image_size) != bool(data.target_downsample_size):
        return error(f"{MAXIMUM} and {TARGET} belong together", MAXIMUM, TARGET, fix="set both or neither")
    return None


def sizes_in_order(config: Config) -> Iterator[Problem]:
    data = config[Data]
    low, high, target = data.minimum_image_size, data.maximum_image_size, data.target_downsample_size
    if low and high and low > high:
        message = f"{MINIMUM} {low:g} is above {MAXIMUM} {high:g}: no image could pass"
        yield error(message, MINIMUM, MAXIMUM, fix=f"lower {MINIMUM}, or raise {MAXIMUM}")
    if high and target and target > high:
        message = f"{TARGET} {target:g} is above {MAXIMUM} {high:g}: images would grow"
        yield error(message, TARGET, MAXIMUM, fix=f"lower {TARGET}, or raise {MAXIMUM}")


def area_is_in_megapixels(config: Config) -> Problem | None:
    data = config[Data]
    if data.resolution_type == "area" and data.resolution > MAX_MEGAPIXELS:
        message = f"resolution {data.resolution:g} with resolution_type area means megapixels"
        fix = 'did you mean "resolution_type": "pixel_area"?'
        return error(message, "resolution", "resolution_type", fix=fix)
    return None


def edge_is_in_pixels(config: Config) -> Problem | None:
    data, model = config[Data], config[Model]
    flavour = families()[model.model_family].flavours[model.model_flavour]
    smallest = LEAST_EDGE_CELLS * flavour.alignment
    if data.resolution_type != "area" and data.resolution < smallest:
        message = f"resolution {data.resolution:g} is below {smallest} pixels"
        fix = 'did you mean "resolution_type": "area" (megapixels)?'
        return error(message, "resolution", "resolution_type", fix=fix)
    return None


def dataset_file_is_there(config: Config) -> Problem | None:
    path = config[Data].data_backend_config
    if not path.is_file():
        what = f"{path} is a folder, not a dataset file" if path.is_dir() else f"no dataset file at {path}"
        fix = "simpletuner configure writes one; config/multidatabackend.json.example is a start by hand"
        return error(what, "data_backend_config", fix=fix)
    return None
