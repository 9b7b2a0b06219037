"""An option is declared once; values are read, refused and reported in one way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator

from simpletuner.groups import GROUPS, OPTIONS
from simpletuner.optim.options import Optimizer
from simpletuner.schema import (
    GIVEN,
    Basic,
    Former,
    Ge,
    Group,
    Gt,
    Le,
    Lines,
    Meaning,
    Raw,
    Unit,
    When,
    convert,
    options,
    parse,
)


def _colour(value: str) -> str:
    if value == "blue":
        raise ValueError("no apple is blue")
    return value


class Fruit(Group, title="Fruit"):
    apples: Annotated[int, Ge(0), Le(9), Unit("pieces"), Basic] = 3
    """How many apples."""
    weight: Annotated[float, Gt(0), Former("mass")] = 0.5
    """In kilograms."""
    ripe: bool = False
    """Soft, and soon gone."""
    kind: Annotated[Literal["Boskoop", "Elstar"], Meaning({"Elstar": "sweet"})] = "Elstar"
    """Which apple."""
    basket: Path | None = None
    """Where they lie."""
    names: list[str] = []
    """What they are called."""
    more: Annotated[dict[str, Any] | str | None, When(ripe=True)] = None
    """Anything else."""
    stages: Annotated[list[Literal["peel", "core"]], Meaning({"peel": "thinly"})] = []
    """What is done to them."""
    note: Annotated[str | None, Lines, When(basket=GIVEN)] = None
    """What the label says."""
    recipe: dict[str, Any] | str | None = "recipe.json"
    """What becomes of them."""
    weights: list[Annotated[float, Ge(0)]] = []
    """What each weighs."""
    colour: Annotated[str, AfterValidator(_colour)] = "red"
    """What they look like."""


def read(**values):
    groups, problems = parse([Fruit], {key: Raw(value, "here") for key, value in values.items()})
    return groups["Fruit"], problems


def test_an_option_is_plain_data():
    found = options([Fruit])
    first = ["apples", "weight", "ripe", "kind", "basket", "names", "more", "stages", "note", "recipe"]
    assert list(found) == [*first, "weights", "colour"]
    apples = found["apples"]
    assert (apples.kind, apples.default, apples.level, apples.bounds, apples.unit) == (
        "int",
        3,
        "basic",
        "[0, 9]",
        "pieces",
    )
    assert (apples.help, apples.group, apples.flag) == ("How many apples.", "Fruit", "--apples")
    assert found["weight"].former == ("mass",) and found["weight"].bounds == "> 0"
    assert found["kind"].choices == (("Boskoop", ""), ("Elstar", "sweet"))
    assert [found[key].kind for key in ("basket", "names", "more")] == ["path", "list", "object"]
    assert (found["stages"].kind, found["stages"].choices) == ("list", (("peel", "thinly"), ("core", "")))
    assert found["note"].kind == "lines" and found["recipe"].kind == "object"
    assert found["basket"].optional and not found["ripe"].optional and str(found["more"].when) == "ripe=true"


def test_an_option_without_help_cannot_exist():
    with pytest.raises(TypeError, match="without help: pears"):

        class Silent(Group, title="Silent"):
            pears: int = 1


def test_a_name_is_declared_once():
    class Again(Group, title="Again"):
        mass: int = 1
        """The former name of another option."""

    with pytest.raises(TypeError, match="mass is declared in Fruit and in Again"):
        options([Fruit, Again])


@pytest.mark.parametrize("value", [True, "true", "Yes", "y", "ON", "1", 1, 1.0])
def test_true_in_every_spelling(value):
    assert read(ripe=value) == (Fruit(ripe=True), [])


@pytest.mark.parametrize("value", [False, "false", "No", "n", "off", "0", 0])
def test_the_text_false_is_false(value):
    fruit, problems = read(ripe=value)
    assert fruit.ripe is False and not problems


@pytest.mark.parametrize("value", ["maybe", 2, [], "truee"])
def test_what_is_neither_true_nor_false_is_an_error(value):
    _, (problem,) = read(ripe=value)
    assert "is not true or false" in problem.message and problem.where == "here" and problem.fix == "give true or false"


@pytest.mark.parametrize(("value", "number"), [(7, 7), ("7", 7), (7.0, 7), ("7e0", 7), ('"7"', 7), ("'7'", 7)])
def test_whole_numbers(value, number):
    fruit, problems = read(apples=value)
    assert fruit.apples == number and type(fruit.apples) is int and not problems


@pytest.mark.parametrize("value", [1000.5, "1.5", True, False, "nan", "inf", "many", [1], {}])
def test_what_is_no_whole_number(value):
    fruit, (problem,) = read(apples=value)
    assert fruit.apples == 3 and problem.keys == ("apples",) and "[0, 9]" in problem.fix


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-inf", True, "1,5"])
def test_what_is_no_number(value):
    assert read(weight=value)[1]


def test_bounds_are_told_with_the_range():
    _, (problem,) = read(apples=10)
    assert problem.message == "apples: 10 is outside [0, 9]" and problem.exit_code == 2
    assert read(weight=0)[1] and not read(weight="1e-4")[1]


def test_bounds_of_an_item_are_told_with_the_item():
    _, (problem,) = read(weights=[0.5, -1])
    assert problem.message == "weights: -1: Input should be greater than or equal to 0"


def test_a_reason_of_an_options_own_stands_alone():
    _, (problem,) = read(colour="blue")
    assert problem.message == 'colour: "blue": no apple is blue'


def test_matching_quotes_around_the_whole_value_go():
    for written, value in [("'a'", "a"), ('"a"', "a"), ("'a", "'a"), ("'a' or 'b'", "'a' or 'b'"), ("'", "'")]:
        assert read(note=written)[0].note == value


def test_choices_take_any_case_and_name_the_nearest():
    assert read(kind="boskoop")[0].kind == "Boskoop"
    _, (problem,) = read(kind="Elster")
    assert "is not a choice" in problem.message and problem.fix.startswith('did you mean "Elstar"?')


@pytest.mark.parametrize(
    ("key", "word"),
    [("dynamo_backend", "no"), ("evaluation_type", "none"), ("scheduled_sampling_reflexflow", "false")],
)
def test_false_for_a_choice_is_the_choice_that_is_off(key, word):
    assert convert(OPTIONS[key], False) == word


@pytest.mark.parametrize("value", [None, "", "  "])
def test_null_and_empty_are_unset(value):
    assert read(apples=value, basket=value) == (Fruit(), [])


def test_none_is_null_only_where_an_option_may_be_empty():
    assert read(basket="none") == (Fruit(basket=None), [])
    assert read(apples="none")[1]


def test_lists_and_objects_in_all_their_spellings(tmp_path):
    assert (
        read(names="a, b")[0].names
        == read(names=["a", "b"])[0].names
        == read(names='["a", "b"]')[0].names
        == ["a", "b"]
    )
    (tmp_path / "more.json").write_text('{"a": 1}')
    for value in ({"a": 1}, '{"a": 1}', str(tmp_path / "more.json")):
        assert read(more=value)[0].more == {"a": 1}
    assert read(more="a=1,b=2")[0].more == "a=1,b=2"
    assert "No such file" in read(more=str(tmp_path / "none.json"))[1][0].message
    (problem,) = read(more='{"a": ')[1]
    assert problem.message.endswith("not valid JSON: the file ends where a value should be, at 1:7")


def test_json_in_a_text_is_read_as_tolerantly_as_a_file():
    fruit, problems = read(more='{"a": 1, /* one */ "b": [2,],}')
    assert fruit.more == {"a": 1, "b": [2]}
    assert [(p.severity, p.where) for p in problems] == [("warning", "here")] * 3
    told = ["1:10 of its text: comment", "1:27 of its text: trailing comma", "1:29 of its text: trailing comma"]
    assert all(p.message.startswith(f"more, at {start}") for p, start in zip(problems, told, strict=True))
    fruit, (warning,) = read(names='["a",]')
    assert fruit.names == ["a"] and warning.message.startswith("names, at 1:5 of its text: trailing comma")
    _, (problem,) = read(more='{"a": 1, "a": 2}')
    assert problem.severity == "error" and '"a" is given twice with different values' in problem.message
    assert "Expecting" not in read(names='["a" "b"]')[1][0].message


def test_a_list_may_stand_in_a_file(tmp_path):
    file = tmp_path / "names.json"
    file.write_text('["a", "b",]')
    fruit, (warning,) = read(names=str(file))
    assert fruit.names == ["a", "b"] and warning.severity == "warning" and warning.where == f"{file}:1:10"
    file.write_text('{"a": 1}')
    assert read(names=str(file))[1][0].message == 'names: {"a": 1} is not a list'
    file.write_text('["a" "b"]')
    assert read(names=str(file))[1][0].where == f"{file}:1:6"
    (problem,) = read(names=str(tmp_path / "none.json"))[1]
    assert problem.message == "names: cannot be read: No such file or directory" and problem.severity == "error"
    assert read(names="a, b.json")[0].names == ["a", "b.json"]


def test_a_file_for_an_object_is_read_like_every_other_file(tmp_path):
    (tmp_path / "more.json").write_text('{"a": 1, // one\n "b": 2,}')
    fruit, problems = read(more=str(tmp_path / "more.json"))
    assert fruit.more == {"a": 1, "b": 2}
    assert [(p.severity, p.where.rpartition("/")[2]) for p in problems] == [
        ("warning", "more.json:1:10"),
        ("warning", "more.json:2:8"),
    ]
    (tmp_path / "more.json").write_text('{"a" 1}')
    fruit, (problem,) = read(more=str(tmp_path / "more.json"))
    assert fruit.more is None and problem.severity == "error" and problem.where.endswith("more.json:1:6")
    (tmp_path / "more.json").write_text("7")
    assert "is not an object" in read(more=str(tmp_path / "more.json"))[1][0].message


def test_a_default_that_names_a_file_stays_a_name():
    assert read(recipe="recipe.json") == (Fruit(), [])
    assert "No such file" in read(recipe="recipes.json")[1][0].message


def test_a_list_of_choices_takes_commas_and_spaces_and_names_what_it_does_not_know():
    for value in ("peel,core", "peel core", ["Peel", "core"], '["peel", "core"]'):
        assert read(stages=value)[0].stages == ["peel", "core"]
    assert read(stages="")[0].stages == []
    _, (problem,) = read(stages="peel,cor")
    assert problem.message == 'stages: "cor" is not a choice' and "choices: peel, core" in problem.fix


def test_lines_are_a_text_or_a_list_of_texts():
    assert read(note="one, two")[0].note == "one, two"
    assert read(note=["one", "two"])[0].note == read(note='["one", "two"]')[0].note == "one\ntwo"
    assert read(note=[1])[1] and read(note='["one"')[1]


def test_given_is_any_value_that_switches_something_on():
    when = options([Fruit])["note"].when
    assert str(when) == "basket is set"
    assert all(when.holds(value) for value in (True, 1, 0.5, "basket", {"a": 1}, [1], ["wandb"]))
    assert not any(when.holds(value) for value in (None, False, 0, 0.0, "", "none", "no", [], {}, ["none"]))


def test_a_choice_of_many_is_not_listed_in_the_message():
    _, (problem,) = parse([Optimizer], {"optimizer": Raw("adam", "here")})
    assert problem.fix == (
        'did you mean "torch-adam" or "optimi-adam" or "bnb-adam"?'
        ' the usual choice is "adamw_bf16"; simpletuner help optimizer lists all'
    )


def test_all_problems_come_together_and_the_rest_is_read():
    fruit, problems = read(apples="x", weight=-1, ripe="perhaps", kind="Braeburn", names=["a"])
    assert [p.keys[0] for p in problems] == ["apples", "weight", "ripe", "kind"]
    assert fruit == Fruit(names=["a"])


def test_a_group_is_frozen_and_refuses_strangers():
    with pytest.raises(ValueError, match="frozen"):
        Fruit().apples = 4
    with pytest.raises(ValueError, match="Extra inputs"):
        Fruit(pears=1)


@given(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.lists(st.integers()),
        st.dictionaries(st.text(), st.integers()),
    )
)
def test_any_value_gives_a_group_or_a_problem_but_never_a_crash(value):
    for key in options([Fruit]):
        if key == "more" and isinstance(value, str) and "\x00" in value:
            continue  # no file name holds it
        fruit, problems = read(**{key: value})
        assert isinstance(fruit, Fruit) and all(p.severity == "error" and p.fix for p in problems)


def test_every_default_passes_its_own_bounds():
    for key, option in OPTIONS.items():
        if option.default is None or isinstance(option.default, Path):
            continue
        value = convert(option, option.default)
        _, problems = parse(GROUPS, {key: Raw(value, "")})
        assert problems == [], key


def test_every_option_has_help_that_is_one_or_two_sentences():
    for option in OPTIONS.values():
        assert option.help.endswith(".") and option.help[0] != " " and len(option.help) < 240, option.key
