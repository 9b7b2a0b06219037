"""Options that only Flux has: guidance of distilled models, masks of text padding, times of reference images."""

from __future__ import annotations

from typing import Annotated, Literal

from simpletuner.schema import Basic, Expert, Ge, Group, Meaning, When


class FluxOptions(Group, title="Objective"):
    flux_guidance_mode: Annotated[
        Literal["constant", "random-range"],
        Meaning({"constant": "one value for all samples", "random-range": "a draw for each sample"}),
    ] = "constant"
    """How the guidance of a training sample is chosen."""
    flux_guidance_value: Annotated[float, Ge(0), Basic] = 1.0
    """1.0 keeps the distillation and speed at inference; 3.5 to 4.5 brings back CFG, which inference then needs."""
    flux_guidance_min: Annotated[float, Ge(0), Expert, When(flux_guidance_mode="random-range")] = 0.0
    """Lower end of the random range."""
    flux_guidance_max: Annotated[float, Ge(0), Expert, When(flux_guidance_mode="random-range")] = 4.0
    """Upper end of the random range."""
    flux_attention_masked_training: bool = False
    """Hides the padding of captions from attention; only for a base that was trained so, others get worse."""
    flux_attention_mask_mode: Annotated[
        Literal["auto", "boolean", "bias"],
        Expert,
        When(flux_attention_masked_training=True),
        Meaning(
            {
                "auto": "bias for libreflux, else boolean",
                "boolean": "padding is shut out",
                "bias": "padding is weighed down, as LibreFlux was trained",
            }
        ),
    ] = "auto"
    """How padding is hidden."""
    kontext_reference_time: Annotated[
        Literal["same", "zero"],
        Expert,
        When(model_flavour="kontext"),
        Meaning({"same": "that of the image, as every other tool does", "zero": "clean"}),
    ] = "same"
    """Time that the tokens of reference images are told; what training uses, inference must use too."""
