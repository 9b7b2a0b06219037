"""An edit changes the span of one value: order, comments, prefixes, white space and line ends stay."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simpletuner import editing, reading
from simpletuner.editing import edit
from simpletuner.errors import ConfigError

TEXT = """\
// my run {
{
  "--seed": 1,   // lucky
  "--model-flavour": "krea" ,
  "--sizes": [1, 2] # both
  /* the end */
}
"""

# A busy machine is no failure.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# ---- texts of people, in many manners

words = st.sampled_from(["seed", "lora_rank", "learning-rate", "max_train_steps", "output_dir", "note", "a", "b"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9999) | st.floats(-1, 1) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
gaps = st.sampled_from(["", " ", "\n", "\n  ", "\r\n\t", " // c {\n", ' /* "x": 1, } */ ', "\n# y\n  "])


@st.composite
def texts(draw):
    """(text of an object, its values): any order, spelling, gap, comment, and perhaps a trailing comma."""
    keys = draw(st.lists(words, unique=True, max_size=5))
    prefix = draw(st.sampled_from(["", "--"]))
    held = {prefix + key: draw(values) for key in keys}
    parts = []
    for key, value in held.items():
        written = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 2])))
        parts.append(f"{draw(gaps)}{json.dumps(key)}{draw(gaps)}:{draw(gaps)}{written}{draw(gaps)}")
    tail = "," if parts and draw(st.booleans()) else ""
    text = (
        draw(st.sampled_from(["", "\ufeff"]))
        + draw(gaps)
        + "{"
        + ",".join(parts)
        + tail
        + draw(gaps)
        + "}"
        + draw(gaps)
    )
    return text, held


def loaded(text):
    return reading.parse_text(text, "f").value


@unhurried
@given(texts())
def test_no_edit_changes_no_byte(pair):
    text, held = pair
    assert loaded(text) == held
    assert edit(text, {}) == text and edit(text, held) == text


@unhurried
@given(texts(), values, st.data())
def test_one_edit_changes_one_span(pair, value, data):
    text, held = pair
    if not held:
        return
    key = data.draw(st.sampled_from(sorted(held)))
    after = edit(text, {key.replace("_", "-").lstrip("-"): value})
    assert loaded(after) == held | {key: value} and list(loaded(after)) == list(held)
    body = text.removeprefix("\ufeff")
    member = next(m for m in reading.parse_text(body, "f").members if m.key == key)
    before, behind = text[: len(text) - len(body) + member.value[0]], body[member.value[1] :]
    assert after.startswith(before) and after.endswith(behind)


def comments(text):
    """What is no JSON: all comments, in order, as far as they are those of `gaps`."""
    return [text.count("// c {"), text.count('/* "x": 1, } */'), text.count("# y")]


@unhurried
@given(texts(), values)
def test_a_new_key_is_the_last_and_nothing_else_changes(pair, value):
    text, held = pair
    after = edit(text, {"validation_prompt": value})
    prefix = "--" if held and all(key.startswith("--") for key in held) else ""
    assert loaded(after) == held | {prefix + "validation_prompt": value} and list(loaded(after))[:-1] == list(held)
    assert comments(after) == [a + b for a, b in zip(comments(text), comments(json.dumps(value)), strict=True)]
    assert loaded(edit(after, {}, ["validation_prompt"])) == held


@unhurried
@given(texts(), st.data())
def test_a_removed_key_is_gone_with_its_comma_alone(pair, data):
    text, held = pair
    gone = data.draw(st.lists(st.sampled_from(sorted(held)), unique=True)) if held else []
    after = edit(text, {}, gone)
    assert loaded(after) == {key: value for key, value in held.items() if key not in gone}
    body = text.removeprefix("\ufeff")
    members = reading.parse_text(body, "f").members
    spans = [comments(body[m.start : m.value[1]]) for m in members if m.key in gone]  # inside the member it goes along
    lost = [sum(column) for column in zip([0, 0, 0], *spans, strict=True)]
    assert comments(after) == [a - b for a, b in zip(comments(text), lost, strict=True)]


# ---- the manner in which we write


@pytest.mark.parametrize(
    ("changes", "remove", "old", "new"),
    [
        ({"seed": 2}, [], '"--seed": 1,', '"--seed": 2,'),
        ({"model_flavour": "dev"}, [], '"krea" ,', '"dev" ,'),
        ({"seed": "1"}, [], '"--seed": 1,', '"--seed": "1",'),
        ({"seed": True}, [], '"--seed": 1,', '"--seed": true,'),
        ({"sizes": []}, [], "[1, 2] # both", "[] # both"),
        ({"a": "ä"}, [], '2] # both\n  /* the end */\n', '2], # both\n  /* the end */\n  "--a": "ä"\n'),
        ({"seed": {"b": [{}]}}, [], ": 1,", ': {\n    "b": [\n      {}\n    ]\n  },'),
        ({}, ["seed"], '"--seed": 1,   // lucky', "// lucky"),
        ({}, ["model-flavour"], '  "--model-flavour": "krea" ,\n', ""),
        ({}, ["sizes"], ' ,\n  "--sizes": [1, 2] # both', ' \n  # both'),
        ({}, ["nothing"], "1", "1"),
    ],
)  # fmt: skip
def test_edits_of_one_text(changes, remove, old, new):
    assert old in TEXT and edit(TEXT, changes, remove) == TEXT.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("{}", '{\n  "a": 1\n}'),
        ("{\n}\n", '{\n  "a": 1\n}\n'),
        ('{"b": 2}', '{"b": 2, "a": 1}'),
        ('{"b": 2,}', '{"b": 2, "a": 1}'),
        ('{\n    "b": 2\n}', '{\n    "b": 2,\n    "a": 1\n}'),
        ('{\r\n\t"b": 2\r\n}\r\n', '{\r\n\t"b": 2,\r\n\t"a": 1\r\n}\r\n'),
        ('{"$schema": "s", "--b": 2}', '{"$schema": "s", "--b": 2, "--a": 1}'),
        ('{"--b": 2, "c": 3}', '{"--b": 2, "c": 3, "a": 1}'),
        ('// {"x"}\n{"b": 2}', '// {"x"}\n{"b": 2, "a": 1}'),
    ],
)
def test_a_new_key_is_written_like_the_others(text, after):
    assert edit(text, {"a": 1}) == after


def test_a_key_that_stands_there_twice_is_changed_twice():
    assert edit('{"a": 1, "--a": 1}', {"a": 2}) == '{"a": 2, "--a": 2}'
    assert edit('{"a": 1, "--a": 1}', {}, ["a"]) == "{}"


@pytest.mark.parametrize("text", ["", "[]", "7", '{"a": }', "null"])
def test_what_is_no_object_is_refused(text):
    with pytest.raises(ConfigError):
        edit(text, {"a": 1})


# ---- files


def test_a_file_is_replaced_whole_and_the_one_before_is_kept(tmp_path):
    path = tmp_path / "config.json"
    for text in ('{"a": 1}\r\n', '{"a": 2}\r\n'):
        editing.write(path, text)
        assert editing.read(path) == text == path.read_bytes().decode()
    assert (tmp_path / "config.json.bak").read_bytes() == b'{"a": 1}\r\n'
    os.chmod(path, 0o600)
    editing.write(path, editing.read(path))
    assert (tmp_path / "config.json.bak").read_bytes() == b'{"a": 1}\r\n'  # nothing was changed, so nothing was kept
    editing.write(path, "{}", backup=False)
    assert path.stat().st_mode & 0o777 == 0o600 and sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "config.json.bak",
    ]


def test_a_link_goes_on_pointing_to_its_file(tmp_path):
    real = tmp_path / "real.json"
    real.write_text("{}")
    (tmp_path / "config.json").symlink_to(real)
    editing.write(tmp_path / "config.json", '{"a": 1}')
    assert (tmp_path / "config.json").is_symlink() and real.read_text() == '{"a": 1}'


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text("{}")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        editing.write(path, '{"a": 1}')
    assert path.read_text() == "{}" and [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_file_that_is_not_utf_8_is_refused(tmp_path):
    path = tmp_path / "c.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigError, match="not UTF-8"):
        editing.read(Path(path))


LIST = '[\n  // first\n  {"id": "a"}, # c\n  {\n    "id": "b",\n    "--resolution": 512,\n  },\n]\n'


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_one_item_of_a_list_is_edited_and_the_others_stay(mark):
    edited = editing.edit_item(mark + LIST, 1, {"resolution": 1024, "repeats": 3})
    assert edited == mark + LIST.replace("512,", '1024,\n    "repeats": 3')


def test_an_item_is_added_behind_the_last():
    assert editing.append(LIST, {"id": "c"}) == LIST.replace("  },\n]", '  },\n  {\n    "id": "c"\n  }\n]')
    assert editing.append("[]", 1) == "[\n  1\n]"
    assert editing.append('[{"a": 1}]\n', 2) == '[{"a": 1},\n  2]\n'
    with pytest.raises(ConfigError, match="expected a list"):
        editing.append("{}", 1)
