"""Why an image is left out, in words for people (data.md section 5 has the reasons)."""

from __future__ import annotations

from simpletuner.data.scan import LeftOut

# Reason -> what is said of the detail, which is a size or a message of the decoder.
WORDS = {
    "unreadable": "cannot be read: {detail}",
    "truncated": "damaged: {detail}",
    "too-many-pixels": "{detail} is above image_pixel_limit",
    "unsupported-mode": "pixels of kind {detail} are not read",
    "too-small": "{detail} is below minimum_image_size",
    "aspect-out-of-range": "{detail} is outside the aspect ratios",
    "needs-upscale": "{detail} would have to grow by more than max_upscale_threshold",
    "no-caption": "no caption: {detail}",
    "non-finite-latent": "the VAE gives no finite values for it",
}


def said(item: LeftOut) -> str:
    words = WORDS.get(item.reason, f"{item.reason}: {{detail}}")
    return words.format(detail=item.detail).removesuffix(": ")
