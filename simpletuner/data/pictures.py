"""From the bytes of a picture file to pixels: headers, decoding, colour, resampling (data.md sections 5 and 6.1)."""

from __future__ import annotations

import importlib.util
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageCms

from simpletuner.types import Placement, Size

if TYPE_CHECKING:
    from torch import Tensor

# The limit is ours (image_pixel_limit), checked from the header before any pixel is decoded; Pillow's only warns.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns about damaged metadata; what matters of it is reported by our own reasons and notes.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

EXTENSIONS = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff"))
FORMATS = ["JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF"]
if importlib.util.find_spec("pillow_heif"):
    import pillow_heif

    pillow_heif.register_heif_opener()
    EXTENSIONS |= {".heic", ".heif"}
    FORMATS.append("HEIF")

BYTES_PER_PIXEL = 6  # while decoding: the picture, and its copy in sRGB or at another size
FIRST_BYTES, MOST_BYTES = 64 * 1024, 1024 * 1024
WHOLE_FILE_KINDS = (b"RIFF", b"II*\0", b"MM\0*")  # WebP and TIFF headers point to the end of the file

GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "LAB", *GREY_16))
ORIENTATION = 0x0112
# EXIF orientation -> what makes the picture upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on broken files.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)

BROKEN_PROFILE, FIRST_FRAME = "broken-profile", "first-frame"


class Rejected(Exception):
    """A picture that cannot be used: `reason` is one of data.md section 5, `detail` says more."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Header(NamedTuple):
    """What is known of a picture without its pixels."""

    size: Size  # after rotation
    format: str
    mode: str


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 if there is none. Asked before pixels are loaded, so that header and decoder agree."""
    if image.format == "TIFF":
        return 1  # Pillow turns TIFF files by itself, and gives the turned size
    try:
        if "exif" not in image.info and image.format == "PNG":
            return 1  # getexif would decode the pixels
        return int(image.getexif().get(ORIENTATION, 1))
    except BROKEN:
        return 1


def _header(image: Image.Image) -> Header:
    width, height = image.size
    if _orientation(image) in (5, 6, 7, 8):
        width, height = height, width
    return Header(Size(height, width), image.format or "", image.mode)


def read_header(read: Callable[[int | None], bytes]) -> Header:
    """The header of a picture; `read(n)` gives the first n bytes of the file, `read(None)` all. Raises Rejected."""
    length: int | None = FIRST_BYTES
    while True:
        try:
            data = read(length)
        except OSError as error:
            raise Rejected("unreadable", error.strerror or str(error)) from error
        whole = length is None or len(data) < length
        try:
            return _header(_open(data))
        except BROKEN as error:
            if whole:
                raise Rejected("unreadable", _plain(error)) from error
        assert length is not None
        length = None if length >= MOST_BYTES or data.startswith(WHOLE_FILE_KINDS) else length * 2


def _plain(error: BaseException) -> str:
    text = str(error)
    return "not a picture of an accepted format" if "cannot identify" in text else text or type(error).__name__


def open_rgb(data: bytes, notes: list[str] | None = None, pixel_limit: int | None = None) -> Image.Image:
    """The first frame, upright, as 8-bit sRGB. Raises Rejected; appends what was odd to `notes`."""
    notes = [] if notes is None else notes
    try:
        image = _open(data)
        orientation = _orientation(image)
        frames = getattr(image, "n_frames", 1)
    except BROKEN as error:
        raise Rejected("unreadable", _plain(error)) from error
    if pixel_limit and image.width * image.height > pixel_limit:
        raise Rejected("too-many-pixels", f"{image.width}x{image.height}")
    if image.mode not in MODES:
        raise Rejected("unsupported-mode", image.mode)
    try:
        image.load()
    except BROKEN as error:
        raise Rejected("truncated", _plain(error)) from error
    if frames > 1 and image.format != "MPO":  # the further pictures of an MPO are depth maps and previews
        notes.append(FIRST_FRAME)
    profile = image.info.get("icc_profile")
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    return _to_srgb(image, profile, notes)


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    if image.mode in GREY_16:
        grey = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.round(grey / 257).astype(np.uint8))
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")  # type: ignore[return-value]
    alpha = None
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if profile:
        image = _apply_profile(image, profile, notes)
    image = image.convert("RGB")
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return image


def _apply_profile(image: Image.Image, data: bytes, notes: list[str]) -> Image.Image:
    """`image` in sRGB, perceptual intent with black-point compensation. A profile that cannot be used is noted."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = profile.profile.xcolor_space.strip()
        if space == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if space == "GRAY" and image.mode == "RGB":  # a grey picture that came with transparency
            image = image.convert("L")
        if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space) != image.mode:
            raise ValueError(f"a {space} profile on {image.mode} pixels")
        if "sRGB" in (profile.profile.profile_description or ""):
            return image
        turned = ImageCms.profileToProfile(
            image,
            profile,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.PERCEPTUAL,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        assert turned is not None
        return turned
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        notes.append(BROKEN_PROFILE)
        return image


def decode(data: bytes, notes: list[str] | None = None) -> np.ndarray:
    """The picture as (height, width, 3) uint8, sRGB, upright. Raises Rejected."""
    return np.asarray(open_rgb(data, notes))


def placed(
    data: bytes, placement: Placement, notes: list[str] | None = None, pixel_limit: int | None = None
) -> Image.Image:
    """The picture that is trained on: resampled once and cropped, 8-bit sRGB. Raises Rejected."""
    image = open_rgb(data, notes, pixel_limit)
    image = image.resize((placement.resize.width, placement.resize.height), Image.Resampling.LANCZOS)
    top, left = placement.crop
    height, width = placement.bucket
    return image.crop((left, top, left + width, top + height))


def prepare(
    data: bytes, placement: Placement, notes: list[str] | None = None, pixel_limit: int | None = None
) -> Tensor:
    """The training image: (3, h, w) fp32 in [-1, 1]. Raises Rejected."""
    import torch

    pixels = np.asarray(placed(data, placement, notes, pixel_limit))  # (h, w, 3)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 127.5 - 1
