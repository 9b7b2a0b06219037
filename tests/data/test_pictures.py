"""Picture files of every kind: sizes from headers, colours, and what is refused."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from simpletuner.data.pictures import (
    BROKEN_PROFILE,
    FIRST_BYTES,
    FIRST_FRAME,
    Rejected,
    decode,
    prepare,
    read_header,
)
from simpletuner.types import Placement, Size


def saved(image: Image.Image, format: str = "PNG", **keys) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **keys)
    return file.getvalue()


def header(data: bytes, asked: list | None = None):
    def read(length):
        if asked is not None:
            asked.append(length)
        return data[:length]

    return read_header(read)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def marked() -> Image.Image:
    """40x30, red in the top left corner and blue elsewhere."""
    image = Image.new("RGB", (40, 30), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 16, 16))
    return image


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_ends_upright_and_header_and_pixels_agree(format, orientation):
    undo = {
        2: 0,
        3: 3,
        4: 1,
        5: 5,
        6: 2,
        7: 6,
        8: 4,
    }  # Pillow's transpositions that put the picture into that orientation
    image = marked()
    stored = image.transpose(Image.Transpose(undo[orientation])) if orientation in undo else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(stored, format, exif=exif)
    assert header(data).size == Size(30, 40)
    pixels = decode(data)
    assert pixels.shape == (30, 40, 3)
    assert pixels[4, 4, 0] > 200 and pixels[4, 4, 2] < 60, "red corner"
    assert pixels[-4, -4, 2] > 200 and pixels[4, -4, 2] > 200 and pixels[-4, 4, 2] > 200


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP"])
def test_headers_are_read_from_the_first_bytes_only(format):
    asked: list = []
    assert header(saved(noise(400, 300), format), asked).size == Size(300, 400)
    assert asked == [FIRST_BYTES]


def test_a_long_header_is_read_in_doubling_parts():
    data = saved(noise(400, 300), "JPEG", icc_profile=b"x" * 150_000)
    asked: list = []
    assert header(data, asked).size == Size(300, 400)
    assert asked == [FIRST_BYTES, 2 * FIRST_BYTES, 4 * FIRST_BYTES]


@pytest.mark.parametrize("format", ["WEBP", "TIFF"])
def test_headers_at_the_end_of_a_large_file_are_found(format):
    data = saved(noise(600, 500), format)
    assert len(data) > FIRST_BYTES
    assert header(data).size == Size(500, 600)


def test_transparency_becomes_white():
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (2, 2, 6, 6))
    for kind in (image, image.convert("LA"), image.quantize(16)):
        pixels = decode(saved(kind))
        assert (pixels[0, 0] == 255).all() and (pixels[4, 4] != 255).any(), kind.mode
    half = decode(saved(Image.new("RGBA", (2, 2), (0, 0, 0, 128))))
    assert (half == 127).all()
    keyed = decode(saved(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3)))
    assert (keyed == 255).all()


def test_16_bit_grey_is_divided_by_257():
    values = np.array([[0, 257, 257 * 100 + 128, 257 * 100 + 129, 65535]], dtype=np.uint16)
    for format in ("PNG", "TIFF"):
        assert decode(saved(Image.fromarray(values), format))[0, :, 0].tolist() == [0, 1, 100, 101, 255]


def test_other_modes_become_rgb():
    assert decode(saved(Image.new("1", (2, 2), 1))).tolist()[0][0] == [255, 255, 255]
    assert decode(saved(Image.new("L", (2, 2), 77))).tolist()[0][0] == [77, 77, 77]
    palette = Image.new("RGB", (2, 2), (9, 99, 199)).quantize(4)
    assert decode(saved(palette)).tolist()[0][0] == [9, 99, 199]
    cmyk = decode(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert cmyk[0, 0, 0] > 240 and cmyk[0, 0, 1] < 15, "inverted Adobe CMYK is red"
    lab = decode(saved(Image.new("LAB", (2, 2), (255, 128, 128)), "TIFF"))
    assert lab[0, 0].min() > 240, "L 100 without colour is white"


def test_unsupported_modes_are_refused():
    data = saved(Image.new("F", (4, 4), 0.5), "TIFF")
    assert header(data).mode == "F"
    with pytest.raises(Rejected, match="unsupported-mode"):
        decode(data)


def swapped_profile() -> bytes:
    """An RGB profile whose red and green primaries are exchanged: applying it must exchange the channels."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    data = bytearray(
        bytes(data).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be")).replace(b"sRGB", b"test")
    )
    (count,) = struct.unpack(">I", data[128:132])
    for i in range(count):
        at = 132 + 12 * i
        tag = bytes(data[at : at + 4])
        data[at : at + 4] = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(tag, tag)
    return bytes(data)


def test_colour_profiles_are_applied():
    profile = swapped_profile()
    pixels = decode(saved(Image.new("RGB", (2, 2), (255, 0, 0)), icc_profile=profile))
    assert pixels[0, 0, 1] > 250 and pixels[0, 0, 0] < 5, "what the file calls red, its profile calls green"
    clear = decode(saved(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), icc_profile=profile))
    assert (clear == 255).all()


def test_an_srgb_profile_changes_nothing():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = noise(32, 32)
    assert (decode(saved(image, icc_profile=srgb)) == np.asarray(image)).all()


@pytest.mark.parametrize("profile", [b"junk" * 40, swapped_profile()[:200]])
def test_a_broken_profile_is_ignored_with_a_note(profile):
    notes: list[str] = []
    image = noise(8, 8)
    assert (decode(saved(image, icc_profile=profile), notes) == np.asarray(image)).all()
    assert notes == [BROKEN_PROFILE]


def test_animations_give_their_first_frame():
    notes: list[str] = []
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pixels = decode(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True), notes)
    assert pixels[0, 0].tolist() == [255, 0, 0] and notes == [FIRST_FRAME]
    assert decode(saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_files_are_refused_never_padded(format, share):
    data = saved(noise(200, 150), format)
    with pytest.raises(Rejected, match=r"truncated|unreadable"):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "data", [b"", b"<html>no picture</html>", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a\0\0"]
)
def test_what_is_no_picture_is_unreadable(data):
    for use in (header, decode):
        with pytest.raises(Rejected, match="unreadable"):
            use(data)


def test_content_decides_the_format_and_the_limit_holds():
    data = saved(noise(20, 10))
    assert header(data).format == "PNG"
    placement = Placement(Size(10, 20), (0, 0), Size(10, 20))
    with pytest.raises(Rejected, match="too-many-pixels"):
        prepare(data, placement, pixel_limit=199)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, on damaged metadata
def test_random_damage_never_crashes():
    rng = np.random.default_rng(1)
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP"):
        data = saved(noise(60, 40), format)
        for _ in range(60):
            broken = bytearray(data)
            for at in rng.integers(0, len(data), 5):
                broken[at] = rng.integers(0, 256)
            for use in (header, decode):
                try:
                    use(bytes(broken))
                except Rejected as error:
                    assert error.reason in ("unreadable", "truncated", "unsupported-mode")


def test_prepare_resamples_once_and_crops():
    image = noise(200, 100)
    placement = Placement(Size(64, 128), (0, 32), Size(64, 64))
    pixels = prepare(saved(image), placement)
    expected = np.asarray(image.resize((128, 64), Image.Resampling.LANCZOS))[:, 32:96]
    assert pixels.shape == (3, 64, 64)
    assert (((pixels + 1) * 127.5).round().numpy().transpose(1, 2, 0) == expected).all()
    assert pixels.min() >= -1 and pixels.max() <= 1
