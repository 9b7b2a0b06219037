"""What a filter list does to captions, and which entries it cannot use."""

from __future__ import annotations

import time

import pytest

from simpletuner.data import filters


@pytest.mark.parametrize(
    ("entry", "caption", "result"),
    [
        ("s/cat/dog/", "a cat", "a dog"),
        ("s/cat/dog", "a cat, a cat", "a dog, a cat"),
        ("s/^a (\\w+)/the \\1/", "a cat", "the cat"),
        ("s/1\\/2/1\\/4/", "1/2 cup", "1/4 cup"),
        ("s/ ?blurry//", "a blurry cat", "a cat"),
        ("blurry", "blurry a blurry cat", "a cat"),
        ("[0-9]+", "7 cats [0-9]+ 9", "cats"),
        ("(best", "a (best cat", "a cat"),
        ("x", "two  spaces", "two spaces"),
    ],
)
def test_what_an_entry_does(entry, caption, result):
    assert filters.apply([filters.read(entry)[0]], caption) == result


def test_without_a_list_captions_stay_as_they_are():
    assert filters.apply([], "two  spaces") == "two  spaces"


@pytest.mark.parametrize(("entry", "part"), [("(best", "no regular expression"), ("s/a/b/g", "no s/find/replace/")])
def test_odd_entries_give_a_notice(entry, part):
    assert part in filters.read(entry)[1] and not filters.read("plain")[1]


@pytest.mark.parametrize("entry", ["s/(cat/dog/", "s/cat/\\1/", "s/cat/\\q/", "s/(?P<x>c)/\\g<y>/"])
def test_a_replacement_that_cannot_work_is_refused_at_once(entry):
    with pytest.raises(ValueError, match="s/"):
        filters.read(entry)
    filters.read("s/(?P<x>c)(d)?/\\g<x>\\2/")


def test_an_entry_that_never_ends_is_stopped_and_named():
    start = time.monotonic()
    with pytest.raises(filters.TooSlow, match=r'\(x\|xx\)\+.*"xxx'):
        filters.read("(x|xx)+[0-9]$")[0]("x" * 100 + "!")
    assert time.monotonic() - start < 5
