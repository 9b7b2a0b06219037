"""How cache items are named: a key is a hash of everything that decides the item's content (data.md section 11)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from simpletuner.types import Placement

CONVENTION = 1  # raised whenever decoding, resampling or layout changes a value
HEADER_BYTES = 512  # of an item, about
ENCODER_LETTERS = 12  # of an encoder's fingerprint: the folder of its items
TILED = "tiled-instead.txt"  # in the folder of a VAE whose whole pictures did not fit into memory


def key_of(**parts: Any) -> str:
    """sha256 of the parts as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def latent_key(digest: str, placement: Placement, encoder: str, mode: str = "sample") -> str:
    """Key of one image's latent: the file's bytes, the placement, the VAE. No seed, no batch size, no device."""
    resize, crop, bucket = list(placement.resize), list(placement.crop), list(placement.bucket)
    return key_of(
        convention=CONVENTION, digest=digest, resize=resize, crop=crop, bucket=bucket, mode=mode, encoder=encoder
    )


def text_key(caption: str, encoder: str) -> str:
    """Key of one caption's embeddings; the encoder's fingerprint covers tokenizers, precision and length."""
    return key_of(convention=CONVENTION, caption=caption, encoder=encoder)


def item_path(key: str) -> str:
    """Where an item lies below the folder of its encoder: 256 folders, so that none grows too large to list."""
    return f"{key[:2]}/{key}.safetensors"


def tiled_instead(root: Path, encoder: str) -> bool:
    """Whether a run has found that pictures of the cache at `root` fit into memory in tiles only.

    Its latents lie under the key of the VAE with tiling, so no key ever names what it is not. This says which of the
    two a later start takes: it encodes nothing anew, and a resumed run goes on with the numbers that it began with.
    """
    return (root / encoder[:ENCODER_LETTERS] / TILED).exists()
