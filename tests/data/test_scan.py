"""Discovery: which files are images, what is left out and listed, what a second look costs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from simpletuner.errors import DataError


def save(path: Path, width: int = 100, height: int = 80, colour=(9, 9, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)


def paths(library, number: int = 0) -> list[str]:
    return [item.sample.path for item in library.shelves[number].items]


def left_out(library) -> dict[str, str]:
    return {item.path: item.reason for item in library.shelves[0].scan.left_out}


@pytest.fixture
def folder(world):
    return world.folder / "images"


@pytest.fixture
def entry(folder):
    return {"id": "d", "instance_data_dir": str(folder)}


def test_images_are_found_in_natural_order_and_other_files_are_not_images(world, folder, entry):
    names = ["img10.png", "img2.PNG", "b/x.jpeg", "b/y.webp", "é 1.bmp"]
    others = [".hidden.png", ".git/x.png", "__MACOSX/x.png", "a-masklabel.png", "a-condlabel.png", "notes.txt", "x.gif"]
    for name in names:
        save(folder / name)
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    library = world.open(entry)
    assert paths(library) == ["b/x.jpeg", "b/y.webp", "img2.PNG", "img10.png", "é 1.bmp"]
    assert library.shelves[0].scan.left_out == []
    first = library.shelves[0].items[0].sample
    assert first.id == "d/b/x.jpeg" and first.size == (80, 100) and first.captions == ("x",) and first.digest == ""


def test_every_image_that_is_not_used_is_listed_with_its_reason(world, folder, entry):
    save(folder / "good.png", 200, 200)
    save(folder / "small.png", 40, 40)
    save(folder / "wide.png", 900, 100)
    save(folder / "large.png", 1000, 1000)
    (folder / "page.jpg").write_bytes(b"<html></html>")
    (folder / "gone.png").symlink_to(folder / "nothing")
    Image.new("F", (200, 200)).save(folder / "float.tif")
    world.options = world.options.model_copy(update={"image_pixel_limit": 900_000})
    library = world.open({**entry, "minimum_image_size": 64, "maximum_aspect_ratio": 2})
    expected = {
        "small.png": "too-small",
        "wide.png": "aspect-out-of-range",
        "large.png": "too-many-pixels",
        "page.jpg": "unreadable",
        "gone.png": "unreadable",
        "float.tif": "unsupported-mode",
    }
    assert left_out(library) == expected and paths(library) == ["good.png"]
    listed = (world.folder / "out/cache/vae/flux/d/rejected-d.jsonl").read_text().splitlines()
    assert {json.loads(line)["path"]: json.loads(line)["reason"] for line in listed} == expected
    report = next(event for event in world.seen if event.type == "dataset.report")
    assert report.data["images"] == 1 and report.data["excluded"]["unreadable"] == 2


def test_a_name_that_is_not_utf8_is_listed(world, folder, entry):
    save(folder / "a.png")
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes((folder / "a.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    library = world.open(entry)
    assert paths(library) == ["a.png"] and list(left_out(library).values()) == ["unreadable"]


def test_an_empty_folder_is_a_dataset_error(world, folder, entry):
    folder.mkdir()
    with pytest.raises(DataError, match="^no images detected in dataset d: 0 files") as found:
        world.open(entry)
    assert found.value.exit_code == 3
    (folder / "a.gif").write_bytes(b"")
    with pytest.raises(DataError, match=r"none with an accepted extension \(\.gif\)"):
        world.open(entry)


def test_when_all_are_left_out_the_reasons_are_counted(world, folder, entry):
    save(folder / "a.png", 40, 40)
    save(folder / "b.png", 40, 40)
    with pytest.raises(DataError, match="none of 2 images can be used: too-small 2"):
        world.open({**entry, "minimum_image_size": 64})


def test_the_problems_of_all_datasets_come_together(world, folder):
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
    with pytest.raises(DataError) as found:
        world.open(*({"id": name, "instance_data_dir": str(folder / name)} for name in ("one", "two")))
    assert len(found.value.problems) == 2


def test_a_second_scan_reads_no_header_and_a_changed_file_one(world, folder, entry):
    for number in range(4):
        save(folder / f"{number}.png", colour=(number, 0, 0))
    assert world.open(entry).shelves[0].scan.headers_read == 4
    assert world.open(entry).shelves[0].scan.headers_read == 0
    save(folder / "2.png", 64, 64)
    (folder / "1.png").unlink()
    library = world.open(entry)
    assert library.shelves[0].scan.headers_read == 1
    assert paths(library) == ["0.png", "2.png", "3.png"]
    assert library.shelves[0].items[1].sample.size == (64, 64)


def test_a_damaged_index_only_costs_time(world, folder, entry):
    save(folder / "a.png")
    world.open(entry).close()
    index = world.folder / "out/cache/vae/flux/d/index-d.sqlite"
    for damage in (b"no database", index.read_bytes()[:5000]):
        index.write_bytes(damage)
        assert world.open(entry).shelves[0].scan.headers_read == 1


def test_captions_from_text_files_follow_edits_without_reading_headers(world, folder, entry):
    save(folder / "a.png")
    save(folder / "b.png")
    (folder / "a.txt").write_text("first\nsecond\n")
    (folder / "b.caption").write_text("other")
    entry = {**entry, "caption_strategy": "textfile"}
    library = world.open(entry)
    assert [item.sample.captions for item in library.shelves[0].items] == [("first", "second"), ("other",)]
    assert library.captions() == ["", "first", "other", "second"]
    (folder / "a.txt").write_text("edited!")
    library = world.open(entry)
    assert library.shelves[0].items[0].sample.captions == ("edited!",)
    assert library.shelves[0].scan.headers_read == 0


def test_missing_captions_stop_or_are_handled_as_told(world, folder, entry):
    for number in range(12):
        save(folder / f"{number}.png")
    (folder / "0.txt").write_text("zero")
    (folder / "1.txt").write_bytes(b"caf\xe9")
    entry = {**entry, "caption_strategy": "textfile"}
    with pytest.raises(DataError, match="10 images have no caption") as found:
        world.open(entry)
    assert "2.png" in found.value.problems[0].details
    library = world.open({**entry, "missing_caption": "skip"})
    assert paths(library) == ["0.png"]
    assert {item.path: item.detail for item in library.shelves[0].scan.left_out}["1.png"].startswith("1.txt: not UTF-8")
    library = world.open({**entry, "missing_caption": "empty"})
    assert len(paths(library)) == 11 and library.shelves[0].items[1].sample.captions == ("",)


def test_a_nul_in_a_caption_is_an_error_that_names_the_file(world, folder, entry):
    save(folder / "a.png")
    (folder / "a.txt").write_bytes(b"a\0b")
    with pytest.raises(DataError) as found:
        world.open({**entry, "caption_strategy": "textfile"})
    assert "a.txt" in found.value.problems[0].details[0]


def test_a_subset_is_fixed_and_one_more_file_changes_at_most_one_member(world, folder, entry):
    for number in range(20):
        save(folder / f"{number}.png")
    before = set(paths(world.open({**entry, "max_num_samples": 8})))
    assert before == set(paths(world.open({**entry, "max_num_samples": 8}))) and len(before) == 8
    save(folder / "new.png")
    assert len(before - set(paths(world.open({**entry, "max_num_samples": 8})))) <= 1


def test_hints_come_as_notices(world, folder, entry):
    save(folder / "a.png")
    (folder / "a.txt").write_text("x")
    (folder / "loop").symlink_to(folder)
    notices = world.open(entry).shelves[0].scan.notices
    assert any("textfile" in notice for notice in notices) and any("loop" in notice for notice in notices)


def test_a_dataset_smaller_than_one_step_says_what_works(world, folder, entry):
    for number in range(3):
        save(folder / f"{number}.png")
    with pytest.raises(DataError) as found:
        world.open(entry, batch=4, accumulation=2)
    (problem,) = found.value.problems
    assert problem.exit_code == 3
    assert (problem.message, *problem.details) == (
        "dataset d is too small for one step",
        "have  3 images x (1 + repeats 0) = 3",
        "need  train_batch_size 4 x gradient_accumulation_steps 2 x ranks 1 = 8",
        'set "repeats": 2 (the smallest that works), or allow_dataset_oversubscription: true,',
        "or add images, or lower the batch size, the accumulation or the number of GPUs",
    )
    world.options = world.options.model_copy(update={"allow_dataset_oversubscription": True})
    assert world.open(entry, batch=4, accumulation=2).shelves[0].repeats == 2
    assert any("repeats raised" in str(event.data) for event in world.seen)
