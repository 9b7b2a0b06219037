"""Bucket maths against the table of vectors in the contract."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.data.geometry import Shape, edge, enlargement, fit, place, square_pixels, window
from simpletuner.data.options import ImageEntry
from simpletuner.types import Size

# original, aspect, then target / resize / label for area 1024, 768, 512 and pixel 512
VECTORS = """
1024x1024 1.0 1024x1024/1024x1024/1.0 768x768/768x768/1.0 512x512/512x512/1.0 512x512/512x512/1.0
1920x1080 1.78 1344x768/1365x768/1.75 1024x576/1024x576/1.78 704x384/704x396/1.83 896x512/910x512/1.75
1080x1920 0.56 768x1344/768x1365/0.57 576x1024/576x1024/0.56 384x704/396x704/0.55 512x896/512x910/0.57
1024x768 1.33 1152x896/1194x896/1.29 896x640/896x672/1.4 576x448/597x448/1.29 704x512/704x528/1.38
768x1024 0.75 896x1152/896x1194/0.78 640x896/672x896/0.71 448x576/448x597/0.78 512x704/528x704/0.73
1536x1024 1.5 1280x832/1280x853/1.54 960x640/960x640/1.5 640x448/672x448/1.43 768x512/768x512/1.5
1024x1536 0.67 832x1280/853x1280/0.65 640x960/640x960/0.67 448x640/448x672/0.7 512x768/512x768/0.67
3000x2000 1.5 1280x832/1280x853/1.54 960x640/960x640/1.5 640x448/672x448/1.43 768x512/768x512/1.5
2048x1024 2.0 1472x704/1472x736/2.09 1088x512/1088x544/2.12 704x384/768x384/1.83 1024x512/1024x512/2.0
1000x3000 0.33 576x1792/597x1792/0.32 448x1344/448x1344/0.33 320x896/320x960/0.36 512x1536/512x1536/0.33
4032x3024 1.33 1152x896/1194x896/1.29 896x640/896x672/1.4 576x448/597x448/1.29 704x512/704x528/1.38
1200x1000 1.2 1152x960/1152x960/1.2 832x704/844x704/1.18 576x448/576x480/1.29 640x512/640x533/1.25
1280x1000 1.28 1152x896/1152x900/1.29 896x704/901x704/1.27 576x448/576x450/1.29 640x512/655x512/1.25
640x480 1.33 1152x896/1194x896/1.29 896x640/896x672/1.4 576x448/597x448/1.29 704x512/704x528/1.38
2560x1080 2.37 1600x640/1600x675/2.5 1152x512/1213x512/2.25 768x320/768x324/2.4 1216x512/1216x513/2.38
"""
COLUMNS = (("pixel_area", 1024), ("pixel_area", 768), ("pixel_area", 512), ("pixel", 512))


def size_of(text: str) -> Size:
    width, height = text.split("x")
    return Size(int(height), int(width))


def shape(aspects: tuple = (), alignment: int = 64, **keys: object) -> Shape:
    return Shape(ImageEntry(id="d", type="local", instance_data_dir=".", **keys), aspects, alignment)


def placed(size: str, aspects: tuple = (), **keys: object):
    return place(size_of(size), shape(aspects, **keys), id="d", path="p.png")


@pytest.mark.parametrize("row", [line.split() for line in VECTORS.split("\n") if line])
def test_every_vector_of_the_contract(row):
    original, aspect, *expected = row
    for (unit, value), vector in zip(COLUMNS, expected, strict=True):
        found = shape(resolution=value, resolution_type=unit)
        size = size_of(original)
        assert found.aspect(size) == float(aspect)
        target, resize = fit(size, found.aspect(size), value, found)
        assert f"{target}/{resize}/{found.aspect(target)}" == vector, (unit, value)


@pytest.mark.parametrize(
    ("edge", "original", "resize"),
    [
        (512, "1920x1080", "910x512"),
        (512, "1080x1920", "512x910"),
        (512, "640x480", "682x512"),
        (512, "4032x3024", "682x512"),
        (1024, "1920x1080", "1820x1024"),
        (1024, "1000x3000", "1024x3073"),
        (1024, "4032x3024", "1365x1024"),
    ],
)
def test_square_crops(edge, original, resize):
    found = placed(original, resolution=edge, crop=True)
    assert (str(found.bucket), str(found.resize)) == (f"{edge}x{edge}", resize)


def test_closest_takes_the_nearest_listed_aspect_and_ties_go_to_the_smaller():
    aspects = ((0.5, 1.0), (1.0, 1.0), (1.5, 1.0), (2.0, 1.0))
    found = placed("1920x1080", aspects, crop=True, crop_aspect="closest")
    assert (str(found.bucket), str(found.resize)) == ("1472x704", "1472x828")
    tie = placed("1250x1000", aspects, crop=True, crop_aspect="closest")
    assert tie.bucket == Size(1024, 1024)


def test_a_large_image_gives_a_window_into_a_larger_picture():
    keys = {"crop": True, "maximum_image_size": 1536, "target_downsample_size": 1280}
    large = placed("4032x3024", **keys)
    assert (str(large.bucket), str(large.resize)) == ("1024x1024", "1472x1104")
    small = placed("1500x1500", **keys)  # 2.25 megapixels, below 2.36
    assert (str(small.bucket), str(small.resize)) == ("1024x1024", "1024x1024")
    uncropped = placed("4032x3024", **{**keys, "crop": False})
    assert uncropped == placed("4032x3024")


def test_window_always_covers_the_target():
    found = window(size_of("4000x1000"), Size(1024, 1024), shape(crop=True, target_downsample_size=1024))
    assert found.height >= 1024 and found.width >= 1024


@pytest.mark.parametrize(
    ("unit", "size", "kept"),
    [
        ("pixel", "1760x1024", True),
        ("pixel", "1280x768", False),
        ("pixel_area", "1280x960", True),
        ("pixel_area", "1000x1000", False),
    ],
)
def test_minimum_size_in_both_units(unit, size, kept):
    found = placed(size, resolution_type=unit, minimum_image_size=1024)
    assert (found != "too-small") == kept


def test_minimum_of_a_square_crop_needs_both_edges():
    assert placed("1280x960", minimum_image_size=1024, crop=True) == "too-small"


def test_upscale_threshold_is_rounded_to_two_decimals():
    assert placed("850x850", max_upscale_threshold=0.2) != "needs-upscale"
    assert placed("256x256", max_upscale_threshold=0.2) == "needs-upscale"
    assert enlargement(Size(256, 256), Size(1024, 1024)) == 3.0


def test_upscale_threshold_removes_buckets_before_images():
    aspects = ((0.25, 0.999), (1.0, 0.001))
    found = placed("1024x1024", aspects, crop=True, crop_aspect="random", max_upscale_threshold=0)
    assert found.bucket == Size(1024, 1024)


def test_aspect_limits():
    assert placed("2000x1000", maximum_aspect_ratio=1.9) == "aspect-out-of-range"
    assert placed("1000x2000", minimum_aspect_ratio=0.6) == "aspect-out-of-range"
    assert placed("1000x1000", minimum_aspect_ratio=0.6, maximum_aspect_ratio=1.9) != "aspect-out-of-range"


def test_units_name_the_same_sizes():
    plain = shape()
    assert [edge(v, "area", plain) for v in (0.25, 0.5, 1.0, 2.0, 4.0)] == [512, 704, 1024, 1408, 1984]
    assert square_pixels(512, "pixel_area") == 262144
    assert placed("1920x1080", resolution=1.048576, resolution_type="area") == placed("1920x1080", resolution=1024)


def test_crop_styles():
    assert placed("1920x1080", crop=True, crop_style="corner").crop == (0, 0)
    assert placed("1920x1080", crop=True, crop_style="center").crop == (0, 398)
    assert placed("1920x1080", crop=False, crop_style="corner").crop == (0, 10)
    random = {place(size_of("1920x1080"), shape(crop=True), id="d", path=str(n)).crop for n in range(20)}
    assert len(random) > 10 and all(top == 0 and 0 <= left <= 796 for top, left in random)
    again = place(size_of("1920x1080"), shape(crop=True), id="d", path="3")
    assert again == place(size_of("1920x1080"), shape(crop=True), id="d", path="3")


def test_random_aspects_follow_their_weights():
    aspects = ((1.0, 0.8), (2.0, 0.2))
    found = shape(aspects, crop=True, crop_aspect="random")
    square = [place(Size(1000, 1000), found, id="d", path=str(n)).bucket == Size(1024, 1024) for n in range(500)]
    assert 360 < sum(square) < 440


@given(
    st.integers(1, 8000),
    st.integers(1, 8000),
    st.sampled_from([16, 64]),
    st.sampled_from(["pixel", "pixel_area"]),
    st.booleans(),
)
def test_the_crop_always_lies_inside_the_resized_image(width, height, alignment, unit, crop):
    keys = {"resolution": 512, "resolution_type": unit, "crop": crop}
    found = place(Size(height, width), shape(alignment=alignment, **keys), id="d", path="p")
    assert found.bucket.height % alignment == 0 and found.bucket.width % alignment == 0
    assert 0 <= found.crop[0] <= found.resize.height - found.bucket.height
    assert 0 <= found.crop[1] <= found.resize.width - found.bucket.width
