"""A cache folder is told by its names; only what says of itself that it is an item counts as one to delete."""

from __future__ import annotations

import os
import subprocess

import pytest
import torch

from simpletuner.data.cache import TensorCache
from simpletuner.data.inventory import is_item, take
from simpletuner.data.keys import item_path, text_key

ONE, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def root(tmp_path):
    """Two items of one encoder, one of another, and strange files."""
    for encoder, texts in ((ONE, ("a cat", "a dog")), (OTHER, ("a cat",))):
        cache = TensorCache.at(tmp_path, encoder, "text")
        for text in texts:
            cache.write(text_key(text, encoder), {"x": torch.zeros(4)})
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "aaaaaaaaaaaa" / "model.safetensors").write_bytes(b"mine")
    (tmp_path / "index-cats.sqlite").write_bytes(b"")
    return tmp_path


def gone() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_items_are_told_by_encoder_and_key(root):
    found = take(root)
    cat, dog = text_key("a cat", ONE), text_key("a dog", ONE)
    assert {file.key for file in found.of(ONE)} == {cat, dog}
    assert [file.key for file in found.unused(ONE, {cat})] == [dog]
    assert [file.key for file in found.stale(ONE)] == [text_key("a cat", OTHER)]
    assert found.indexes == ("cats",)
    assert len(found.items) == 3 and all(file.num_bytes > 16 for file in found.items)


def test_damaged_items_and_leftovers_are_told_apart(root):
    folder = root / "aaaaaaaaaaaa"
    path = folder / item_path(text_key("a cat", ONE))
    path.rename(f"{path}.bad")
    for pid in (gone(), os.getpid()):
        path.with_name(f"{path.name}.tmp-{pid}-0").write_bytes(b"half")
    (root / f"notes.txt.tmp-{gone()}-0").write_text("not ours")
    found = take(root)
    assert [file.key for file in found.bad] == [text_key("a cat", ONE)]
    assert len(found.abandoned) == 1 and found.abandoned[0].startswith("aaaaaaaaaaaa/")


def test_a_folder_that_is_not_there_is_empty(tmp_path):
    found = take(tmp_path / "none")
    assert not found.items and not found.bad and not found.abandoned and not found.indexes


def test_only_what_says_that_it_is_the_item_of_its_name_is_one(root):
    file = take(root).of(ONE)[0]
    assert is_item(root, file)
    renamed = file._replace(key="c" * 64, path=f"aaaaaaaaaaaa/cc/{'c' * 64}.safetensors")
    (root / renamed.path).parent.mkdir(exist_ok=True)
    (root / renamed.path).write_bytes((root / file.path).read_bytes())
    assert not is_item(root, renamed)
    for content in (b"", b"\xff" * 100, (2).to_bytes(8, "little") + b"[]", (2).to_bytes(8, "little") + b"{}"):
        (root / file.path).write_bytes(content)
        assert not is_item(root, file)
    (root / file.path).unlink()
    assert not is_item(root, file)
