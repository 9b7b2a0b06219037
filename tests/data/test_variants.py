"""Shuffled and filtered captions, from the dataset file to batches: all encoded before, drawn by address."""

from __future__ import annotations

from collections import Counter

import pytest

from simpletuner.errors import DataError
from simpletuner.types import Progress

TAGS = "dog, running, park, blurry, sunny day"
SHUFFLE = {"enable": True, "count": 2, "position_start": 1}


def texts(filters):
    return {"id": "t", "dataset_type": "text_embeds", "default": True, "caption_filter_list": filters}


@pytest.fixture
def tagged(world, pictures):
    """The six pictures with tags beside each."""
    for path in list((world.folder / "images").iterdir()):
        path.with_suffix(".txt").write_text(TAGS)
    return {**pictures, "caption_strategy": "textfile", "caption_shuffle": SHUFFLE}


def captions(loader, count):
    batches = [loader.next() for _ in range(count)]
    loader.close()
    return [caption for batch in batches for caption in batch.captions]


def test_every_variant_is_encoded_before_training_and_comes_up_in_it(world, tagged):
    library = world.open({**tagged, "caption_dropout_probability": 0.0}, texts(["blurry, ", "s/dog/cat/"]))
    variants = [item.sample.captions for item in library.shelves[0].items]
    assert all(len(set(found)) == 3 and found[0] == "cat, running, park, sunny day" for found in variants)
    assert all(text.startswith("cat, ") for text in library.captions() if text)
    loader = world.loader(library, Progress())
    assert world.texts_encoded == len(library.captions()) and world.text_loads == 1
    drawn = Counter(captions(loader, 120))
    assert set(drawn) == set(library.captions()) - {""}
    assert world.text_loads == 1


def test_the_same_variants_come_up_on_a_second_run_and_after_a_stop(world, tagged):
    straight = captions(world.loader(world.open(tagged), Progress()), 30)
    progress = Progress()
    first = captions(world.loader(world.open(tagged), progress), 11)
    rest = captions(world.loader(world.open(tagged), Progress(**vars(progress))), 19)
    assert first + rest == straight and len(set(straight)) > 6


def test_other_captions_cost_their_new_texts_and_no_latent(world, tagged):
    world.loader(world.open(tagged), Progress())
    before = world.counts()
    world.loader(world.open(tagged), Progress())
    assert world.counts() == before
    world.loader(world.open(tagged, texts(["blurry, "])), Progress())
    assert world.images_encoded == before["images"] and world.texts_encoded > before["texts"]


def test_a_filter_that_never_ends_stops_the_scan_and_is_named(world, tagged):
    for path in (world.folder / "images").glob("*.txt"):
        path.write_text("x" * 100 + "!")
    with pytest.raises(DataError, match="caption_filter_list takes too long") as found:
        world.open(tagged, texts(["(x|xx)+[0-9]$"]))
    (problem,) = found.value.problems
    assert "a_cat_0.png" in problem.details[0] and "(x|xx)+" in problem.details[0] and problem.exit_code == 3


def test_captions_without_another_order_are_told_if_the_original_was_to_go(world, tagged):
    (world.folder / "images/a_cat_0.txt").write_text("one, two")
    keys = {"caption_shuffle": {**SHUFFLE, "include_original": False}}
    scan = world.open({**tagged, **keys}).shelves[0].scan
    assert scan.items[0].sample.captions == ("one, two",) and len(scan.items[1].sample.captions) == 2
    assert [note for note in scan.notices if "caption_shuffle: 1 captions" in note]
    assert not world.open(tagged).shelves[0].scan.notices
