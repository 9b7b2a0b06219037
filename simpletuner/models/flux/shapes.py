"""FLUX.1 in numbers: layers and activations from the transformer's configuration, no weights and no torch."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from simpletuner.errors import SimpleTunerError
from simpletuner.models import Flavour
from simpletuner.models.flux.weights import ENCODERS, Weights
from simpletuner.models.options import Model
from simpletuner.models.places import on_disk
from simpletuner.models.shapes import Shapes, Stack

# Of the published releases; a configuration on this disk wins.
RELEASED: Mapping[str, Any] = {
    "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24,
    "joint_attention_dim": 4096, "pooled_projection_dim": 768, "patch_size": 1, "guidance_embeds": True,
}  # fmt: skip
TIME_CHANNELS = 256  # of the sinusoidal embedding
PARTS = {
    "text_encoder": 123_060_480,
    "text_encoder_2": 4_762_310_656,
    "vae": 83_819_683,
}  # weights: CLIP L, T5 XXL, VAE
LINEAR = {"text_encoder": 84_934_656, "text_encoder_2": 4_630_511_616}  # of these in linear layers
TABLES = re.compile(r"embed|shared\.|relative_attention_bias|position")  # matrices that are looked up
VAE_CHANNELS, VAE_FACTOR = 128, 8
PATCH = 2  # latent cells along the edge of a token
TEXT_TOKENS = 512

# What autograd keeps of a block, by the tensor that a layer reads (tests/models/test_shapes.py counts it). The rest:
# inputs of the layer norms in fp32, queries and keys in fp32 before their norm (4), the four tensors of attention (4),
# the feed-forward part before its activation (4).
DOUBLE = {"attn.to_q": "normed", "attn.to_k": "normed", "attn.to_v": "normed", "attn.to_out.0": "attended",
          "attn.add_q_proj": "normed", "attn.add_k_proj": "normed", "attn.add_v_proj": "normed",
          "attn.to_add_out": "attended", "ff.net.0.proj": "normed2", "ff.net.2": "activated",
          "ff_context.net.0.proj": "normed2", "ff_context.net.2": "activated",
          "norm1.linear": "time", "norm1_context.linear": "time"}  # fmt: skip
SINGLE = {"attn.to_q": "normed", "attn.to_k": "normed", "attn.to_v": "normed", "proj_mlp": "normed",
          "proj_out": "joined", "norm.linear": "time"}  # fmt: skip
UNITS = {"normed": 1.0, "attended": 0.0, "normed2": 1.0, "activated": 4.0, "joined": 5.0, "time": 0.0}
KEPT = {"transformer_blocks": 16.0, "single_transformer_blocks": 14.0}


def shapes(model: Model, flavour: Flavour) -> Shapes:
    """Those of the model that the options name, as far as it is on this disk; else those of the release."""
    weights = Weights(model, flavour)
    config = {**RELEASED, "guidance_embeds": flavour.guidance, **_config(weights, "transformer")}
    vae = _config(weights, "vae")
    width = config["attention_head_dim"] * config["num_attention_heads"]
    layers = dict(_layers(config, width))
    norms = config["attention_head_dim"] * (4 * config["num_layers"] + 2 * config["num_single_layers"])
    sizes = {part: sum(_num_weights(weights, part)) or number for part, number in PARTS.items()}
    factor = 2 ** (len(vae["block_out_channels"]) - 1) if vae else VAE_FACTOR
    return Shapes(
        layers=layers,
        others=sum(out for out, _ in layers.values()) + norms,
        width=width,
        stacks=tuple(
            Stack(name, config[count], reads, UNITS, KEPT[name])
            for name, count, reads in (
                ("transformer_blocks", "num_layers", DOUBLE),
                ("single_transformer_blocks", "num_single_layers", SINGLE),
            )
        ),
        text_tokens=model.tokenizer_max_length or flavour.text_length or _text_length(weights),
        pixels_per_token=factor * PATCH,
        text_encoders=tuple(_encoder(weights, part) for part in ENCODERS),
        vae=sizes["vae"],
        vae_channels=vae["block_out_channels"][0] if vae else VAE_CHANNELS,
        token_channels=config["in_channels"],
        text_widths=(config["joint_attention_dim"], config["pooled_projection_dim"]),
    )


def _layers(config: Mapping[str, Any], width: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every linear layer, named and ordered as in diffusers' FluxTransformer2DModel."""
    inputs = {"timestep_embedder": TIME_CHANNELS, "guidance_embedder": TIME_CHANNELS,
              "text_embedder": config["pooled_projection_dim"]}  # fmt: skip
    for name, channels in inputs.items():
        if name != "guidance_embedder" or config["guidance_embeds"]:
            yield f"time_text_embed.{name}.linear_1", (width, channels)
            yield f"time_text_embed.{name}.linear_2", (width, width)
    yield "context_embedder", (width, config["joint_attention_dim"])
    yield "x_embedder", (width, config["in_channels"])
    wide = 4 * width
    double = {
        "norm1.linear": (6 * width, width), "norm1_context.linear": (6 * width, width),
        **{name: (width, width) for name in DOUBLE if name.startswith("attn.")},
        "ff.net.0.proj": (wide, width), "ff.net.2": (width, wide),
        "ff_context.net.0.proj": (wide, width), "ff_context.net.2": (width, wide),
    }  # fmt: skip
    single = {
        "norm.linear": (3 * width, width), "proj_mlp": (wide, width), "proj_out": (width, width + wide),
        **{name: (width, width) for name in SINGLE if name.startswith("attn.")},
    }  # fmt: skip
    for stack, count, block in (
        ("transformer_blocks", config["num_layers"], double),
        ("single_transformer_blocks", config["num_single_layers"], single),
    ):
        for index in range(count):
            for name, shape in block.items():
                yield f"{stack}.{index}.{name}", shape
    yield "norm_out.linear", (2 * width, width)
    yield "proj_out", (config["patch_size"] ** 2 * (config.get("out_channels") or config["in_channels"]), width)


def _folder(weights: Weights, part: str) -> Path | None:
    """Where the part lies, if it is on this disk; nothing is fetched."""
    place, places = weights.origin(part)
    root = on_disk(place)
    folders = [root / where for where in places] if root else []
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def _config(weights: Weights, part: str) -> dict[str, Any]:
    try:
        folder = _folder(weights, part)
        found = json.loads((folder / "config.json").read_text("utf-8")) if folder else {}
    except (SimpleTunerError, OSError, ValueError):  # the start of a run names what is wrong
        return {}
    return {key: value for key, value in found.items() if value is not None}


def _text_length(weights: Weights) -> int:
    try:
        root = on_disk(weights.origin("tokenizer_2")[0])
        found = json.loads((root / "tokenizer_2/tokenizer_config.json").read_text("utf-8")) if root else {}
    except (SimpleTunerError, OSError, ValueError):
        found = {}
    return min(TEXT_TOKENS, int(found.get("model_max_length", TEXT_TOKENS)))


def _encoder(weights: Weights, part: str) -> tuple[int, int]:
    """Weights in linear layers, and the others."""
    found = _num_weights(weights, part)
    return found if any(found) else (LINEAR[part], PARTS[part] - LINEAR[part])


def _num_weights(weights: Weights, part: str) -> tuple[int, int]:
    """Counted in the headers of the part's files: in matrices that are multiplied with, and in the rest.

    (0, 0) if they are not on this disk.
    """
    try:
        folder = _folder(weights, part)
        counts = [_count(path) for path in folder.glob("*.safetensors")] if folder else []
        return sum(linear for linear, _ in counts), sum(rest for _, rest in counts)
    except (SimpleTunerError, OSError, ValueError, KeyError, struct.error):
        return 0, 0


def _count(path: Path) -> tuple[int, int]:
    """Numbers in a safetensors file: 8 bytes of length, then a table of names and shapes."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        table = json.loads(file.read(length))
    sizes = {name: entry["shape"] for name, entry in table.items() if name != "__metadata__"}
    linear = sum(math.prod(shape) for name, shape in sizes.items() if len(shape) == 2 and not TABLES.search(name))
    return linear, sum(map(math.prod, sizes.values())) - linear
