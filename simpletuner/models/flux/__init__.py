"""FLUX.1 without torch: its flavours, adapter presets and options."""

from __future__ import annotations

from pathlib import Path

import simpletuner
from simpletuner.models import FamilyRecord, Flavour
from simpletuner.models.flux.options import FluxOptions

NON_COMMERCIAL = ("FLUX.1 [dev] Non-Commercial", "flux-1-dev-non-commercial-license")
APACHE = ("Apache-2.0", "apache-2.0")
DEV, SCHNELL = "flux-1-dev", "flux-1-schnell"
# De-distilled models need real CFG and more steps.
CFG = {"validation_guidance_real": 6.0, "validation_num_inference_steps": 28}
NANO = str(Path(simpletuner.__file__).parent / "nano" / "model")

_FLAVOURS = (
    Flavour(
        "krea",
        "black-forest-labs/FLUX.1-Krea-dev",
        *NON_COMMERCIAL,
        gated=True,
        architecture=DEV,
        defaults={"validation_guidance": 3.0},
    ),
    Flavour(
        "dev",
        "black-forest-labs/FLUX.1-dev",
        *NON_COMMERCIAL,
        gated=True,
        architecture=DEV,
        defaults={"validation_guidance": 3.0},
    ),
    Flavour(
        "schnell",
        "black-forest-labs/FLUX.1-schnell",
        *APACHE,
        gated=True,
        guidance=False,
        text_length=256,
        architecture=SCHNELL,
        defaults={
            "flux_fast_schedule": True,
            "assistant_lora_path": "ostris/FLUX.1-schnell-training-adapter",
            "validation_num_inference_steps": 4,
        },
        later="the assistant LoRA that makes schnell trainable",
    ),
    Flavour(
        "kontext",
        "black-forest-labs/FLUX.1-Kontext-dev",
        *NON_COMMERCIAL,
        gated=True,
        architecture=DEV,
        defaults={"validation_guidance": 2.5},
        later="reference images",
    ),
    Flavour(
        "fluxbooru",
        "terminusresearch/fluxbooru-v0.3",
        *NON_COMMERCIAL,
        architecture=DEV,
        defaults={"flux_guidance_value": 3.5, "validation_guidance": 3.5, **CFG},
    ),
    Flavour(
        "libreflux",
        "jimmycarter/LibreFlux-SimpleTuner",
        *APACHE,
        guidance=False,
        architecture=SCHNELL,
        defaults={"flux_attention_masked_training": True, **CFG},
        later="attention masking",
    ),
    Flavour(
        "nano",
        NANO,
        "Apache-2.0, its pictures MIT: see simpletuner/nano/NOTICE",
        "apache-2.0",
        text_length=None,
        alignment=16,
        architecture="flux-1",
        defaults={"validation_guidance": 3.0, "validation_resolution": "64x64"},
    ),
)

# A name matches a module whose path is it or ends in "." + it, or matches it as a regular expression.
IMAGE = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
TEXT_FF = ("ff_context.net.0.proj", "ff_context.net.2")
FF = ("ff.net.0.proj", "ff.net.2", *TEXT_FF, "proj_mlp")
ATTENTION = IMAGE + TEXT
ALL_FF = (*ATTENTION, *FF, "proj_out")  # proj_out also takes the model's last layer

LORA_TARGETS = {
    "all": ATTENTION,
    "attention": ATTENTION,
    "mlp": (*FF, r"single_transformer_blocks\.\d+\.proj_out"),
    "mmdit": IMAGE,
    "context": TEXT,
    "context+ffs": TEXT + TEXT_FF,
    "all+ffs": ALL_FF,
    "all+ffs+embedder": (*ALL_FF, "x_embedder"),
    "ai-toolkit": (*ALL_FF, "norm.linear", "norm1.linear", "norm1_context.linear"),
    "tiny": ("single_transformer_blocks.7.proj_out", "single_transformer_blocks.20.proj_out"),
    "nano": ("single_transformer_blocks.7.proj_out",),
}

RECORD = FamilyRecord(
    name="flux",
    title="FLUX.1",
    flavours={flavour.name: flavour for flavour in _FLAVOURS},
    options=(FluxOptions,),
    lora_targets=LORA_TARGETS,
    fused_names={"to_qkv": ("to_q", "to_k", "to_v"), "add_qkv_proj": ("add_q_proj", "add_k_proj", "add_v_proj")},
    keep_precise=(
        "*norm_q",
        "*norm_k",
        "*norm_added_q",
        "*norm_added_k",
        "x_embedder",
        "context_embedder",
        "time_text_embed.*",
        "norm_out.linear",
        "proj_out",
    ),  # fmt: skip # noqa: E501
    encoders=("text_encoder", "text_encoder_2"),
    target="simpletuner.models.flux.family:Flux",
    sizes="simpletuner.models.flux.shapes:shapes",
    disk="simpletuner.models.flux.disk:OnDisk",
)
