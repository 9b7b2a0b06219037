"""Names of Flux's linear layers in the three dialects of adapter files.

diffusers' names are those of the trained model; BFL's are those of the original model, and ComfyUI puts a prefix before
them; kohya's are BFL's with underscores. Several diffusers layers share one fused BFL layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

PREFIX = "transformer."  # of diffusers' names in a file
KEY = re.compile(r"transformer\.(.+)\.(lora_A\.weight|lora_B\.weight|alpha)")

# diffusers (without block) -> (BFL, part of a fused layer)
DOUBLE = {
    "attn.to_q": ("img_attn.qkv", 0),
    "attn.to_k": ("img_attn.qkv", 1),
    "attn.to_v": ("img_attn.qkv", 2),
    "attn.to_out.0": ("img_attn.proj", 0),
    "attn.add_q_proj": ("txt_attn.qkv", 0),
    "attn.add_k_proj": ("txt_attn.qkv", 1),
    "attn.add_v_proj": ("txt_attn.qkv", 2),
    "attn.to_add_out": ("txt_attn.proj", 0),
    "ff.net.0.proj": ("img_mlp.0", 0),
    "ff.net.2": ("img_mlp.2", 0),
    "ff_context.net.0.proj": ("txt_mlp.0", 0),
    "ff_context.net.2": ("txt_mlp.2", 0),
    "norm1.linear": ("img_mod.lin", 0),
    "norm1_context.linear": ("txt_mod.lin", 0),
}
SINGLE = {
    "attn.to_q": ("linear1", 0),
    "attn.to_k": ("linear1", 1),
    "attn.to_v": ("linear1", 2),
    "proj_mlp": ("linear1", 3),
    "proj_out": ("linear2", 0),
    "norm.linear": ("modulation.lin", 0),
}
OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")


class Names(NamedTuple):
    bfl: str
    kohya: str
    comfyui: str
    part: int  # which output rows of the fused layer, in the order of the model


def names(module: str) -> Names | None:
    """What other tools call a diffusers layer; None if they do not know it."""
    block = BLOCK.fullmatch(module)
    if block:
        entry = (SINGLE if block[1] else DOUBLE).get(block[3])
        if entry is None:
            return None
        bfl, part = f"{'single' if block[1] else 'double'}_blocks.{block[2]}.{entry[0]}", entry[1]
    elif module in OUTSIDE:
        bfl, part = OUTSIDE[module], 0
    else:
        return None
    return Names(bfl, "lora_unet_" + bfl.replace(".", "_"), "diffusion_model." + bfl, part)


def _inverse(table: Mapping[str, tuple[str, int]]) -> dict[str, tuple[str, ...]]:
    """BFL -> the diffusers layers that it is made of, in the order of its output rows."""
    found: dict[str, tuple[str, ...]] = {}
    for own, (bfl, _) in table.items():
        found[bfl] = (*found.get(bfl, ()), own)
    return found


INNER = {"double": _inverse(DOUBLE), "single": _inverse(SINGLE)}
OUTER = {bfl: own for own, bfl in OUTSIDE.items()}
BFL_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")
FLAT_BLOCK = re.compile(r"(double|single|single_transformer|transformer)_blocks_(\d+)_(.+)")
# A name with underscores for dots -> with dots. Underscores that were there before make this a table.
FLAT = {
    name.replace(".", "_"): name for name in (*INNER["double"], *INNER["single"], *OUTER, *DOUBLE, *SINGLE, *OUTSIDE)
}


def modules(bfl: str) -> tuple[str, ...]:
    """The diffusers layers that a layer of the original model is made of, in the order of its rows; () if unknown."""
    block = BFL_BLOCK.fullmatch(bfl)
    if not block:
        return (OUTER[bfl],) if bfl in OUTER else ()
    home = ("single_" if block[1] == "single" else "") + f"transformer_blocks.{block[2]}."
    return tuple(home + own for own in INNER[block[1]].get(block[3], ()))


def with_dots(flat: str) -> str:
    """A layer's name, of diffusers or BFL, from the one with underscores for dots; empty if there is none such."""
    block = FLAT_BLOCK.fullmatch(flat)
    if not block:
        return FLAT.get(flat, "")
    return f"{block[1]}_blocks.{block[2]}.{FLAT[block[3]]}" if block[3] in FLAT else ""
