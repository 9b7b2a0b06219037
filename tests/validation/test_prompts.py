import json

import pytest

from simpletuner.types import Size
from simpletuner.validation import builtin, lines
from simpletuner.validation.options import Validation
from simpletuner.validation.prompts import KEY, load, texts


@pytest.fixture
def library(tmp_path):
    def write(content, name="library.json"):
        path = tmp_path / name
        path.write_text(
            content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=1), "utf-8"
        )
        return load(
            Validation(user_prompt_library=path, validation_disable_unconditional=True),
            instance_prompt=None,
            first_caption=None,
        )

    return write


def errors(problems):
    return [p.message for p in problems if p.severity == "error"]


def test_order_is_unconditional_builtin_library_then_the_main_prompt(tmp_path):
    path = tmp_path / "library.json"
    path.write_text('{"chef": "a photo of a chef"}')
    options = Validation(user_prompt_library=path, validation_prompt_library=True, validation_prompt="a dog")
    prompts, problems = load(options, instance_prompt="instance", first_caption="caption")
    assert [p.nickname for p in prompts] == ["unconditional", *builtin.PROMPTS, "chef", "validation"]
    assert prompts[0].text == "" and prompts[-1].text == "a dog" and not problems
    assert len(builtin.PROMPTS) == 12 and all(name.startswith("builtin_") for name in builtin.PROMPTS)


@pytest.mark.parametrize(("instance", "caption", "expected"), [("i", "c", "i"), (None, "c", "c")])
def test_main_prompt_falls_back_to_instance_prompt_then_first_caption(instance, caption, expected):
    assert load(Validation(), instance_prompt=instance, first_caption=caption)[0][-1].text == expected


def test_all_json_forms_say_the_same(library):
    entry = {
        "prompt": "a chef",
        "seed": 7,
        "resolution": "1024x768,512",
        "steps": "12",
        "guidance": 2,
        "guidance_real": 3.5,
    }
    expected, problems = library({"chef": entry})
    assert not problems
    assert (
        expected[0].sizes == (Size(768, 1024), Size(512, 512))
        and expected[0].steps == 12
        and expected[0].guidance == 2.0
    )
    assert library([{"nickname": "chef", **entry}]) == (expected, [])
    assert library([{"shortname": "chef", **entry}]) == (expected, [])
    renamed = {k: v for k, v in entry.items() if k != "prompt"} | {"caption": "a chef", "name": "chef"}
    assert library([renamed]) == (expected, [])


def test_a_text_line_says_the_same_as_an_entry(library):
    flags = "--W 1024 --h 768 --d 7 --s 20 --g 3.0 --l 1.5 --M 0.5 --n blurry, dark"
    content = f"# comment\n\na cat -- asleep {flags}\nsecond\r\n"
    prompts, problems = library(content, "prompts.txt")
    first, second = prompts
    assert not problems
    assert (first.nickname, first.text, first.negative) == ("line_001", "a cat -- asleep", "blurry, dark")
    assert (first.sizes, first.seed, first.steps) == ((Size(768, 1024),), 7, 20)
    assert (first.guidance, first.guidance_real, first.adapter_strength) == (3.0, 1.5, 0.5)
    assert (second.nickname, second.text, second.sizes) == ("line_002", "second", ())


def test_flags_of_other_programs_are_reported_and_unknown_ones_refused():
    found, problems = lines.fields("a cat --fs 3 --sed 4 --cn x.png --seed 5", "p.txt:1")
    assert found == {"prompt": "a cat", "seed": "5"}
    assert [(p.severity, p.fix) for p in problems] == [
        ("notice", ""),
        ("error", 'did you mean "seed"?'),
        ("error", "remove --cn"),
    ]


def test_every_mistake_is_reported_with_its_line(library):
    content = """{
 "a": {"prompt": "x", "sed": 7},
 "b": {"seed": 1},
 "c": {"prompt": "x", "steps": 0},
 "d": {"prompt": "x", "resolution": "12by9"},
 "e": 5,
 "f": {"prompt": 3},
 "g": {"prompt": "x", "seed": true},
 "": "empty"
}"""
    prompts, problems = library(content)
    assert not prompts
    assert [int(p.where.split(":")[-2]) for p in problems if p.severity == "error"] == [6, 2, 3, 4, 5, 7, 8, 9]
    assert next(p for p in problems if "sed" in p.message).fix == 'did you mean "seed"?'


def test_one_nickname_with_two_texts_is_an_error_with_both_places(library):
    prompts, problems = library(
        [{"nickname": "a", "prompt": "x"}, {"nickname": "a", "prompt": "x"}, {"nickname": "a", "prompt": "y"}]
    )
    (message,) = errors(problems)
    assert ":2:" in message and ":10:" in problems[-1].where
    assert len(prompts) == 1
    assert len(errors(library('{"a": "x",\n "a": "y"}')[1])) == 1


def test_nicknames_become_file_names_and_each_change_is_told_once(library):
    names = ["a/b", "शेर", "CON", "e\u0301", "tab\there", "Chef", "chef", "é" * 60, "unconditional", "dot."]
    prompts, problems = library({name: f"prompt {i}" for i, name in enumerate(names)})
    assert [p.nickname for p in prompts] == [
        "a_b",
        "शेर",
        "CON_",
        "é",
        "tab_here",
        "Chef",
        "chef-2",
        "é" * 40,
        "unconditional",
        "dot_",
    ]
    assert [p.severity for p in problems] == ["notice"] * 7
    assert all(len(p.nickname.encode()) <= 80 for p in prompts)


def test_a_nickname_that_the_program_uses_gets_a_number(tmp_path):
    path = tmp_path / "library.json"
    path.write_text('{"unconditional": "x", "validation": "y"}')
    prompts, _ = load(Validation(user_prompt_library=path), instance_prompt="z", first_caption=None)
    assert [p.nickname for p in prompts] == ["unconditional", "unconditional-2", "validation", "validation-2"]


def test_a_token_left_in_a_prompt_is_a_warning(library):
    prompts, problems = library('{\n "chef": "a photo of <token>"}')
    assert [(p.severity, p.where.split(":")[-2]) for p in problems] == [("warning", "2")] and len(prompts) == 1
    _, problems = load(Validation(validation_prompt="<token> in the rain"), instance_prompt=None, first_caption=None)
    assert [p.severity for p in problems] == ["warning"]


def test_comments_and_a_trailing_comma_only_warn(library):
    prompts, problems = library('{ // mine\n "chef": "a chef", }')
    assert [p.text for p in prompts] == ["a chef"] and {p.severity for p in problems} == {"warning"}


def test_a_library_that_is_missing_or_of_another_kind_is_an_error(library, tmp_path):
    for path in (tmp_path / "no.json", tmp_path / "no.txt"):
        _, problems = load(Validation(user_prompt_library=path), instance_prompt=None, first_caption=None)
        assert len(errors(problems)) == 1
    assert len(errors(library("3")[1])) == 1
    assert len(errors(library(["a prompt"])[1])) == 1


def test_negative_texts_are_encoded_only_where_real_guidance_uses_them(library):
    prompts, _ = library(
        {"a": "x", "b": {"prompt": "y", "negative_prompt": "n"}, "c": {"prompt": "z", "guidance_real": 2}}
    )
    assert texts(prompts, "bad", 1.0) == ["x", "y", "z", "bad"]
    assert texts(prompts, "bad", 2.0) == ["x", "bad", "y", "n", "z"]


@pytest.mark.parametrize("name", ["none.json", "none.txt"])
def test_a_library_that_is_not_there_is_named_with_its_option(tmp_path, name):
    options = Validation(user_prompt_library=tmp_path / name)
    (problem,) = load(options, instance_prompt=None, first_caption=None)[1]
    assert problem.message.startswith("user_prompt_library: cannot be read: ") and problem.keys == (KEY,)
    assert problem.where == str(tmp_path / name) and problem.fix == "correct the path"


def test_a_library_that_is_no_text_is_named_with_its_option(tmp_path):
    for path in (tmp_path / "library.json", tmp_path / "library.txt"):
        path.write_bytes(b"\xff")
        options = Validation(user_prompt_library=path)
        (problem,) = load(options, instance_prompt=None, first_caption=None)[1]
        assert problem.message == "user_prompt_library: not UTF-8 (byte 0)" and problem.keys == (KEY,)
