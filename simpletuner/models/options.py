"""Options that name the model and its parts, and how the VAE is treated."""

from __future__ import annotations

from typing import Annotated, Literal

from simpletuner.schema import Basic, Expert, Ge, Group, Le, Meaning


class Model(Group, title="Model"):
    model_type: Annotated[
        Literal["lora", "full"],
        Basic,
        Meaning({"lora": "a small adapter on the frozen model", "full": "every weight of the transformer"}),
    ] = "lora"
    """What is trained: a small adapter, or all weights, which needs far more memory and gives a whole model."""
    model_family: Literal["flux"] = "flux"
    """The architecture."""
    model_flavour: Annotated[
        Literal["krea", "dev", "schnell", "kontext", "fluxbooru", "libreflux", "nano"],
        Basic,
        Meaning(
            {
                "krea": "FLUX.1-Krea-dev, gated, non-commercial",
                "dev": "FLUX.1-dev, gated, non-commercial",
                "schnell": "FLUX.1-schnell, Apache-2.0, few steps",
                "kontext": "FLUX.1-Kontext-dev, edits images, gated, non-commercial",
                "fluxbooru": "de-distilled dev, needs real CFG",
                "libreflux": "de-distilled schnell, Apache-2.0, needs real CFG",
                "nano": "the bundled demonstration, a CPU is enough",
            }
        ),
    ] = "krea"
    """Which release of the family; sets the weights and several defaults."""
    pretrained_model_name_or_path: str | None = None
    """Hub name or folder of the whole model. Wins over the flavour's weights; behaviour still follows the flavour."""
    pretrained_transformer_model_name_or_path: str | None = None
    """Takes only the transformer from elsewhere; set guidance as its author did."""
    pretrained_transformer_subfolder: str | None = "transformer"
    """Folder of the transformer in that repository; "none" means its root."""
    pretrained_vae_model_name_or_path: str | None = None
    """Takes only the VAE from elsewhere. Changing it makes new latents."""
    pretrained_t5_model_name_or_path: Annotated[str | None, Expert] = None
    """Takes only T5 from elsewhere, for example a copy already on disk."""
    revision: Annotated[str | None, Expert] = None
    """Branch, tag or commit on the hub; fixes what a rerun downloads."""
    variant: Annotated[str | None, Expert] = None
    """Weight variant such as fp16, where a repository holds several."""
    vae_dtype: Annotated[Literal["bf16", "fp16", "fp32", "default"], Expert] = "bf16"
    """Precision of the VAE; fp32 is slower and a little cleaner, default is bf16."""
    cache_dir: Annotated[str | None, Expert] = None
    """Where downloads are kept, instead of the hub's own place. Nothing is downloaded twice."""
    tokenizer_max_length: Annotated[int, Ge(1), Le(512), Expert] | None = None
    """T5 tokens a caption; shorter is faster and cuts long captions. 512, or 256 for schnell, unless set."""
    t5_padding: Annotated[Literal["unmodified", "zero"], Expert] = "unmodified"
    """zero blanks the padding after the caption; use what the base was trained with."""


class ModelMemory(Group, title="Memory and precision"):
    vae_enable_tiling: bool = False
    """Encodes and decodes large images in tiles; less memory, slower, faint seams at worst."""
    vae_enable_slicing: bool = False
    """Encodes and decodes one image at a time; less memory, slower."""
    keep_vae_loaded: Annotated[bool, Expert] = False
    """Leaves the VAE on the GPU; faster validation, more memory."""
