"""Captions in other orders: how many, which, and always the same."""

from __future__ import annotations

import pytest

from simpletuner.data.shuffle import Shuffle

TAGS = "dog, running, park, sunny day"


def variants(caption, sample="d/a.png", dataset="d", **keys):
    return Shuffle(enable=True, **keys).variants(caption, sample, dataset)


def test_the_first_parts_keep_their_place():
    found = variants(TAGS, count=2, position_start=1)
    assert len(set(found)) == 3 and found[0] == TAGS
    assert all(text.startswith("dog, ") and sorted(text.split(", ")) == sorted(TAGS.split(", ")) for text in found)


def test_there_are_as_many_orders_as_exist():
    assert len(set(variants("a, b, c", count=100))) == 6
    assert sorted(variants("a, a, b", count=100)) == ["a, a, b", "a, b, a", "b, a, a"]


@pytest.mark.parametrize("keys", [{"position_start": 3}, {"position_start": 9}, {"split_on": "period"}])
def test_what_cannot_be_shuffled_is_left_alone(keys):
    assert variants(TAGS, **keys) == variants(TAGS, **keys, include_original=False) == [TAGS]
    assert Shuffle(**keys).orders(TAGS) == 0 == Shuffle(**keys).orders("a, a")


def test_the_original_may_go():
    found = variants(TAGS, count=5, include_original=False)
    assert len(set(found)) == 5 and TAGS not in found


def test_words_and_sentences():
    assert sorted(variants("one two", split_on="space")) == ["one two", "two one"]
    assert sorted(variants("One. Two.", split_on="period")) == ["One. Two.", "Two. One."]


def test_orders_follow_dataset_seed_and_sample_and_nothing_else():
    longer = ", ".join(map(str, range(30)))
    first = variants(longer)
    assert first == variants(longer) == variants(longer, dataset="other", seed="d")
    assert first != variants(longer, sample="d/b.png") and first != variants(longer, seed="x")
    assert variants(longer, count=3)[:2] == first  # more of them keep the earlier ones and their embeddings


def test_every_order_is_equally_likely():
    found = [variants("a, b, c", sample=f"d/{n}.png", include_original=False)[0] for n in range(5000)]
    assert all(900 < found.count(text) < 1100 for text in set(found)) and len(set(found)) == 5
