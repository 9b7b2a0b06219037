"""The folder that diffusers' FluxPipeline opens: what belongs into it around a trained transformer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simpletuner.models.flux.weights import KINDS, TOKENIZER, Weights

INDEX = "model_index.json"
ITS_PLACE = "_name_or_path"  # where the author of the base had it
TRAINED = "transformer"
# Classes of the parts where neither the base's index nor the part itself names one.
CLASSES = {
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "transformer": ("diffusers", "FluxTransformer2DModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "T5EncoderModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "T5TokenizerFast"),
}
ABSENT = ("image_encoder", "feature_extractor")  # parts that the class knows and a text-to-image Flux lacks


def files(weights: Weights) -> dict[str, Path | str]:
    """Name within the folder -> the base's file, or a text to write: all parts but the transformer, on this disk.

    What is not here yet is fetched. Errors are those of `Weights.files`.
    """
    found: dict[str, Path | str] = {INDEX: json.dumps(_index(weights), indent=2) + "\n"}
    for part in KINDS:
        if part != TRAINED:
            found |= {f"{part}/{name}": path for name, path in _part(weights, part).items()}
    return found


def _part(weights: Weights, part: str) -> dict[str, Path]:
    """A part's files by the names under which they are found when no variant is asked for."""
    folder, kind = weights.folder(part), KINDS[part]
    if kind is TOKENIZER:
        return {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    found = {name: folder / name for name in kind.configs if (folder / name).is_file()}
    if not kind.stem:
        return found
    shards, variant = weights.files(part), weights.variant(part)
    dot = f".{variant}" if variant else ""
    if [path.name for path in shards] == [f"{kind.stem}{dot}.safetensors"]:
        return found | {f"{kind.stem}.safetensors": shards[0]}
    index = folder / f"{kind.stem}.safetensors.index{dot}.json"
    return found | {path.name: path for path in shards} | {f"{kind.stem}.safetensors.index.json": index}


def _index(weights: Weights) -> dict[str, Any]:
    """model_index.json: the base's own as far as it speaks of parts that are here, else what the parts say."""
    root = weights.main.fetch([INDEX])
    given = json.loads((root / INDEX).read_text("utf-8")) if (root / INDEX).is_file() else {}
    settings = {name: value for name, value in given.items() if not isinstance(value, list) and name != ITS_PLACE}
    classes: dict[str, Any] = dict.fromkeys(ABSENT, [None, None])
    for part, (library, usual) in CLASSES.items():
        named = weights.config(part).get("tokenizer_class" if KINDS[part] is TOKENIZER else "_class_name") or usual
        classes[part] = given[part] if all(given.get(part, [None])) else [library, named]
    return {"_class_name": "FluxPipeline", **settings, **classes}
