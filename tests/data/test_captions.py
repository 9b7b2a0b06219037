"""From file names and text files to caption variants."""

from __future__ import annotations

import pytest

from simpletuner.data import captions, filters
from simpletuner.data.options import ImageEntry
from simpletuner.data.shuffle import Shuffle


def variants(path="a/my_cat.png", text=None, prompts=(), ways=(), **keys):
    entry = ImageEntry(id="d", type="local", instance_data_dir=".", **keys)
    return captions.variants(entry, prompts, path, captions.read(entry, path, text), *ways)


def test_file_names():
    assert variants() == ("my cat",)
    assert variants("x.y.png") == ("x.y",)
    assert variants("_.png") == ()


def test_text_files_give_one_variant_a_line():
    assert variants(text="a\n\n b \na", caption_strategy="textfile") == ("a", "b")
    assert variants(text="a\n\nb", caption_strategy="textfile", disable_multiline_split=True) == ("a\n\nb",)
    assert variants(text=" \n", caption_strategy="textfile") == ()


def test_missing_captions():
    keys = {"caption_strategy": "textfile"}
    assert variants(**keys, missing_caption="empty") == ("",)
    assert variants(**keys, missing_caption="instance_prompt", prompts=("p",)) == ("p",)
    assert variants(**keys, missing_caption="skip") == ()


def test_instance_prompts():
    assert variants(prompts=("x", "y"), caption_strategy="instanceprompt") == ("x", "y")
    assert variants(prompts=("x",), only_instance_prompt=True) == ("x",)
    assert variants(prompts=("sks",), prepend_instance_prompt=True) == ("sks my cat",)
    assert variants(prompts=("sks", "zws"), prepend_instance_prompt=True) == ("sks my cat", "zws my cat")
    # Whole words only: "my" is there, "ca" is not.
    assert variants(prompts=("my",), prepend_instance_prompt=True) == ("my cat",)
    assert variants(prompts=("ca",), prepend_instance_prompt=True) == ("ca my cat",)
    text = "a [trigger] here"
    assert variants(text=text, prompts=("sks",), caption_strategy="textfile") == ("a sks here",)
    assert variants(text=text, caption_strategy="textfile") == (text,)


def test_filters_come_before_the_trigger_and_shuffling_last():
    removed, shuffle = (filters.read("trigger")[0], filters.read("s/cat/dog/")[0]), Shuffle(enable=True)
    found = variants(text="[trigger], cat", prompts=("cat",), ways=(removed,), caption_strategy="textfile")
    assert found == ("[], dog",)
    found = variants(
        "a/a,b.png", prompts=("sks",), ways=((), shuffle), prepend_instance_prompt=True, disable_multiline_split=True
    )
    assert sorted(found) == ["b, sks a", "sks a,b"]
    assert variants(prompts=("a cat",), ways=(removed,), only_instance_prompt=True) == ("a cat",)
    assert variants(text="cat", ways=((filters.read("cat")[0],),), caption_strategy="textfile") == ()


def test_bytes_to_text():
    assert captions.decode(b"\xef\xbb\xbfa\r\nb \n") == "a\nb"
    assert captions.decode("été".encode("utf-16")) == "été"
    zwj = "क्\u200dष e\u0301"
    assert captions.decode(zwj.encode()) == zwj


@pytest.mark.parametrize(("data", "fatal"), [(b"\xff\xfea\x00\x00\x00", True), (b"caf\xe9", False), (b"a\0b", True)])
def test_what_is_no_text(data, fatal):
    with pytest.raises(captions.Unreadable) as found:
        captions.decode(data)
    assert found.value.fatal == fatal


def test_a_huge_caption_is_an_error():
    with pytest.raises(captions.Unreadable):
        captions.decode(b"a" * (captions.MAX_CAPTION_BYTES + 1))


def test_where_caption_files_lie():
    assert captions.caption_paths("a/b.c.png", None) == ["a/b.c.txt", "a/b.c.caption"]
    assert captions.caption_paths("b.png", "tags") == ["b.tags"] == captions.caption_paths("b.png", ".tags")
