import pytest

from simpletuner.types import Size
from simpletuner.validation.sizes import halved, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1024x1024,1280x768,2048x2048", (Size(1024, 1024), Size(768, 1280), Size(2048, 2048))),
        ("512", (Size(512, 512),)),
        ("128", (Size(128, 128),)),
        ("1", (Size(1024, 1024),)),
        ("0.25, 1.0", (Size(512, 512), Size(1024, 1024))),
        ("2.0", (Size(1456, 1456),)),  # 1024 x sqrt(2) = 1448.2, the nearest multiple of 16 is 1456
        ("64x64", (Size(64, 64),)),
        ("1024X768, 1024x768", (Size(768, 1024),)),
    ],
)
def test_sizes_edges_and_megapixels_are_read(text, expected):
    assert parse(text) == (expected, [])


def test_rounding_to_sixteen_is_told():
    found, problems = parse("1000x1023")
    assert found == (Size(1024, 1008),) and [p.severity for p in problems] == ["notice"]


@pytest.mark.parametrize("text", ["", "abc", "0x512", "0", "-512", "1024x", "500.5", "nan", "1024x1024x3", "1e3"])
def test_what_is_not_a_size_is_an_error_with_a_fix(text):
    found, problems = parse(text, where="config.json:3:1")
    assert not found
    assert [(p.severity, p.where) for p in problems] == [("error", "config.json:3:1")] and problems[0].fix


def test_half_the_edge_stays_a_multiple_of_sixteen():
    assert halved(Size(1024, 1008)) == Size(512, 496) and halved(Size(16, 16)) == Size(16, 16)
