"""Lines of Python that open the base model in diffusers and make a picture with it, to be pasted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simpletuner.models.flux.pipeline import CLASSES
from simpletuner.models.flux.weights import Weights
from simpletuner.models.places import Place
from simpletuner.types import Size


def opening(weights: Weights, dtype: str, whole: Path | None = None) -> list[str]:
    """From nothing to `pipeline`: the folder of a whole model, or the base with each part from where it came from.

    dtype: as torch calls it.
    """
    precision = [] if dtype == "float32" else [f"dtype=torch.{dtype}"]
    own = [part for part in CLASSES if not whole and weights.origin(part)[0] != weights.main]
    names = sorted({"FluxPipeline", *(CLASSES[part][1] for part in own if CLASSES[part][0] == "diffusers")})
    lines = ["import torch"] if precision else []
    lines += [f"from diffusers import {', '.join(names)}"]
    lines += [f"from transformers import {CLASSES[part][1]}" for part in own if CLASSES[part][0] == "transformers"]
    for part in own:
        within = weights.within(part)
        where = [_place(weights.origin(part)[0]), *([f"subfolder={_text(within)}"] if within else []), *precision]
        lines.append(f"{part} = {CLASSES[part][1]}.from_pretrained({', '.join(where)})")
    where = [_text(str(whole))] if whole else [*_base(weights), *(f"{part}={part}" for part in own)]
    return [*lines, f"pipeline = FluxPipeline.from_pretrained({', '.join([*where, *precision])})"]


def picture(prompt: str, size: Size, *, steps: int, guidance: float, real: float, length: int) -> str:
    """The line that makes `image`, with the settings of a validation."""
    settings: dict[str, Any] = {"height": size.height, "width": size.width, "num_inference_steps": steps}
    settings |= {"guidance_scale": guidance, "max_sequence_length": length}
    settings |= {"negative_prompt": '""', "true_cfg_scale": real} if real > 1 else {}
    told = ", ".join(f"{name}={value}" for name, value in settings.items())
    return f"image = pipeline({_text(prompt)}, {told}).images[0]"


def _base(weights: Weights) -> list[str]:
    """Where the base model is, as arguments."""
    model, local = weights.model, weights.main.local
    found = [_place(weights.main)]
    found += [f"revision={_text(model.revision)}"] if model.revision and not local else []
    return found + ([f"variant={_text(model.variant)}"] if model.variant else [])


def _place(place: Place) -> str:
    """A hub name, or the whole path of a folder."""
    return _text(str(Path(place.name).expanduser().resolve()) if place.local else place.name)


def _text(value: str) -> str:
    """As Python writes it, in double quotes."""
    return json.dumps(value, ensure_ascii=False)
