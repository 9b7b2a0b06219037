"""New files never take the place of others."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from simpletuner.validation import media


@pytest.fixture
def picture():
    return Image.new("RGB", (16, 16), "red")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("links", [True, False])
def test_numbers_go_on_behind_what_is_there(tmp_path, picture, monkeypatch, links):
    def refused(*_):
        raise PermissionError("links are not supported here")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    folder = tmp_path / "new/folder"
    for number in (1, 2, 3):
        assert media.save_new(picture, folder, "a", {"seed": 7}) == folder / f"a_000{number}.png"
    (folder / "a_0001.png").write_text("mine")
    (folder / "a_0003.png").unlink()
    assert media.save_new(picture, folder, "a", {}).name == "a_0003.png"
    assert (folder / "a_0001.png").read_text() == "mine" and names(folder) == [f"a_000{i}.png" for i in (1, 2, 3)]
    with Image.open(folder / "a_0002.png") as image:
        assert image.text == {"seed": "7"}


def test_many_at_once_each_get_a_name_of_their_own(tmp_path, picture):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda i: media.save_new(picture.copy(), tmp_path, "a", {"number": i}), range(40)))
    assert sorted(path.name for path in paths) == names(tmp_path) and len(set(paths)) == 40
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            assert image.text == {"number": str(number)}
