"""JSON as people write it: tolerant where the meaning is clear, exact about the place where it is not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.reading import COMMENT, MAX_DEPTH, canonical_key, parse_text, read

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


def messages(document):
    return [(p.severity, p.message, p.where) for p in document.problems]


@given(JSON_VALUES)
def test_strict_json_reads_as_json_does(value):
    document = parse_text(json.dumps(value, ensure_ascii=False), "f", names=True)
    assert document.value == value and document.problems == []


@given(st.text(alphabet='{}[]",:/*# \n\\truefalsn0123456789.-+eE\ufeff', max_size=40))
def test_any_text_gives_a_value_or_one_error_but_never_an_exception(text):
    document = parse_text(text, "f")
    assert document.failed or document.value is not None or "null" in text


def test_tolerated_things_are_warned_about_with_line_and_column():
    document = parse_text('\ufeff{\n  // one\n  "a": [1, 2,], /* two */\n  # three\n  "b": 1,\n}\n', "f.json")
    assert document.value == {"a": [1, 2], "b": 1}
    assert messages(document) == [
        ("warning", "byte-order mark", "f.json:1:1"),
        ("warning", COMMENT, "f.json:2:3"),
        ("warning", "trailing comma", "f.json:3:13"),
        ("warning", COMMENT, "f.json:3:17"),
        ("warning", COMMENT, "f.json:4:3"),
        ("warning", "trailing comma", "f.json:5:9"),
    ]


def test_signs_of_comments_inside_texts_are_text():
    assert parse_text('{"url": "http://a/#b /* c */"}', "f").value == {"url": "http://a/#b /* c */"}


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        ('{\n  "a": 1\n  "b": 2\n}', 3, 3, "expected ','"),
        ('{\n  "a": tru\n}', 2, 8, "'tru' is not a value"),
        ("{\n  'a': 1\n}", 2, 3, "expected a key in double quotes"),
        ('{"a": "b\n"}', 1, 7, "not closed"),
        ('{"a": 1', 1, 8, "the file ends"),
        ("", 1, 1, "the file ends"),
        ('{"a": NaN}', 1, 7, "'NaN' is not a value"),
        ('{"a": -Infinity}', 1, 7, "is not a value"),
        ("{} {}", 1, 4, "text after the end"),
        ('{"a": 1,, "b": 2}', 1, 9, "expected a key"),
        ("{ /* open", 1, 3, "a comment is not closed"),
        ('{"a": "\\q"}', 1, 7, "bad escape"),
        ('{"a": "\\ud800"}', 1, 7, "bad escape"),
        ('{"a": 01}', 1, 7, "'01' is not a value"),
    ],
)
def test_anything_else_is_one_error_with_the_line_and_a_caret(text, line, column, said):
    document = parse_text(text, "f.json")
    (problem,) = [p for p in document.problems if p.severity == "error"]
    assert document.failed and document.value is None
    assert problem.where == f"f.json:{line}:{column}" and said in problem.message
    assert problem.fix == "correct it there"
    shown = text.split("\n")[line - 1]
    assert problem.details == ((shown, " " * (column - 1) + "^") if shown else ())


@pytest.mark.parametrize("secret", ['"s3cr+t"', '"s3cr+t', "s3cr+t", '"s3cr+t" x'])
@pytest.mark.parametrize("key", ["aws_secret_access_key", "--aws_access_key_id", "PASSWORD"])
def test_a_secret_on_the_line_of_a_fault_is_not_shown(key, secret):
    text = f'{{"a": 1, "{key}": {secret}, "b": 2 "c": 3}}'
    (problem,) = parse_text(text, "f").problems
    assert "s3cr" not in str(problem) and f'"{key}": ' in problem.details[0] and "******" in problem.details[0]


def test_a_blank_line_is_not_shown():
    document = parse_text('{"a": 1,\n  \n', "f.json")
    (problem,) = document.problems
    assert problem.where == "f.json:3:1" and problem.details == ()


def test_a_long_line_is_shown_around_the_fault():
    document = parse_text('{"a": "' + "x" * 5000 + '", b}', "f.json")
    shown, caret = document.problems[0].details
    assert len(shown) <= 100 and shown[caret.index("^")] == "b"


def test_endless_nesting_is_an_error_and_not_a_crash():
    assert "too deeply" in parse_text("[" * (MAX_DEPTH + 2), "f").problems[0].message


def test_all_spellings_of_a_key_are_one():
    assert {canonical_key(key) for key in ("--learning_rate", "learning-rate", "-learning_rate")} == {"learning_rate"}


def test_the_same_key_twice():
    document = parse_text('{\n"a-b": 1,\n"--a_b": 1\n}', "f")
    assert messages(document) == [("notice", '"--a_b" is given twice with equal values (first at 2:1)', "f:3:1")]
    document = parse_text('{\n"a": 1,\n"a": 2\n}', "f")
    assert messages(document) == [("error", '"a" is given twice with different values (first at 2:1)', "f:3:1")]


def test_peoples_own_words_are_not_folded():
    document = parse_text('{"my-cat": "1", "my_cat": "2"}', "f", names=True)
    assert document.value == {"my-cat": "1", "my_cat": "2"} and not document.problems
    assert document.where("my_cat") == "f:1:17"


def test_places_of_nested_keys_and_of_unknown_ones():
    document = parse_text('[\n  {"id": "a",\n   "--crop-style": 1}\n]', "f")
    assert document.where(0, "crop_style") == "f:3:4" and document.where(0) == "f:2:3"
    assert document.where(0, "nothing") == "f:2:3" and document.where(7) == "f:1:1"


def test_files_that_cannot_be_read_are_problems(tmp_path):
    assert "No such file" in read(tmp_path / "none.json").problems[0].message
    assert read(tmp_path).failed
    (tmp_path / "latin.json").write_bytes('{"a": "é"}'.encode("latin-1"))
    assert "not UTF-8" in read(tmp_path / "latin.json").problems[0].message
