"""What is told of a dataset before training agrees with what training will meet."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from simpletuner.data.health import examine
from simpletuner.data.sampling import Share, plan_epoch, shares


@pytest.fixture
def folder(world):
    folder = world.folder / "pictures"
    folder.mkdir()
    for number, size in enumerate(((80, 80), (64, 64), (40, 40), (160, 60), (160, 60))):
        Image.new("RGB", size, (40 * number, 0, 90)).save(folder / f"{number}.png")
    Image.new("RGB", (20, 20)).save(folder / "small.png")
    (folder / "page.png").write_text("<html>")
    captions = {"0": "a cat", "1": "a cat\nthe cat", "2": "", "3": "a long caption of a dog", "4": "a cat"}
    for name, text in captions.items():
        (folder / f"{name}.txt").write_text(text)
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "copy.txt").write_text("a cat")
    return folder


def open_shelf(world, folder, **more):
    entry = {"id": "d", "instance_data_dir": str(folder), "caption_strategy": "textfile", "minimum_image_size": 32}
    return world.open({**entry, "missing_caption": "skip", **more}, batch=2).shelves[0]


def test_everything_is_counted_once(world, folder):
    shelf = open_shelf(world, folder, repeats=1)
    shelf.hash()
    health = examine(shelf)
    assert (health.found, health.used) == (8, 5)
    assert {reason: [item.path for item in items] for reason, items in health.reasons().items()} == {
        "no-caption": ["2.png"], "unreadable": ["page.png"], "too-small": ["small.png"],
    }  # fmt: skip
    assert health.buckets == {"64x64": 3, "112x32": 2}
    assert health.shares == {"64x64": Share(3, 6, 0), "112x32": Share(2, 4, 0)}
    assert (health.samples, health.batches, health.doubles) == (10, 5, 0)
    assert health.copies == (("0.png", "copy.png"),)


def test_captions_are_described(world, folder):
    captions = examine(open_shelf(world, folder)).captions
    assert (captions.texts, captions.alternatives, captions.empty) == (3, 1, 0)
    assert captions.without == ("2.png",)
    assert captions.repeated == (("a cat", 4),)
    assert captions.longest == ("3.png", "a long caption of a dog")
    assert examine(open_shelf(world, folder, missing_caption="empty")).captions.empty == 1


def test_one_prompt_for_all_is_no_repetition_to_mend(world, folder):
    shelf = open_shelf(world, folder, caption_strategy="instanceprompt", instance_prompt="photo of sks")
    assert examine(shelf).captions.repeated == ()


def test_the_picture_that_grows_most_comes_first(world, folder):
    upscaled = examine(open_shelf(world, folder, missing_caption="empty", resolution=128)).upscaled
    assert [item.path for item in upscaled[:2]] == ["2.png", "1.png"]
    assert upscaled[0][1:] == ("40x40", "128x128", 2.2)


def test_copies_are_known_of_files_that_were_read(world, folder):
    assert examine(open_shelf(world, folder)).copies == ()


@pytest.mark.parametrize(("batch", "repeats", "ranks"), [(1, 0, 1), (2, 0, 1), (4, 3, 1), (4, 2, 2), (8, 0, 3)])
def test_the_share_of_each_bucket_is_that_of_the_plan(world, folder, batch, repeats, ranks):
    shelf = open_shelf(world, folder, repeats=repeats)
    shelf.batch_size = batch
    plan = plan_epoch([shelf.pool()], seed=1, epoch=1, ranks=ranks)
    found = shares(shelf.pool(), ranks)
    for bucket, share in found.items():
        batches = [one for one in plan.batches if one.bucket == bucket]
        assert len(batches) == share.batches
        assert sum(len(one.ids) for one in batches) == share.samples + share.doubles
    assert sum(share.doubles for share in found.values()) == plan.doubles


def test_a_record_is_plain_data(world, folder):
    record = json.loads(json.dumps(examine(open_shelf(world, folder)).record()))
    assert record["buckets"]["64x64"] == {"images": 3, "batches": 2, "samples": 3, "doubles": 1}
    assert {"path": "small.png", "reason": "too-small", "detail": "20x20"} in record["left_out"]
    assert "shares" not in record and record["captions"]["repeated"] == [["a cat", 4]]
