"""What is generated from the options is checked in, and equals what the options say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simpletuner import retired, surfaces
from simpletuner.cli.surfaces import ROOT
from simpletuner.groups import OPTIONS
from simpletuner.schema import Option

AGAIN = "run: python -m simpletuner.cli.surfaces"
LISTED = list(OPTIONS.values())


def test_the_ledger_shows_every_change_of_an_option():
    assert (ROOT / "tests/options.txt").read_text("utf-8") == surfaces.ledger(LISTED), AGAIN


def test_the_page_of_options_is_up_to_date():
    assert (ROOT / "docs/options.md").read_text("utf-8") == surfaces.markdown(LISTED), AGAIN


def test_the_tables_of_the_page_are_whole():
    rows = [line for line in surfaces.markdown(LISTED).splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {5} and sum("`" in row for row in rows) == len(OPTIONS)


def test_the_editors_schema_is_up_to_date():
    assert json.loads((ROOT / "simpletuner/config.schema.json").read_text("utf-8")) == surfaces.json_schema(LISTED), (
        AGAIN
    )


def test_all_three_are_written_at_once(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "simpletuner").mkdir()
    surfaces.write_all(tmp_path, LISTED)
    written = [p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()]
    assert len(written) == 3
    assert all((tmp_path / p).read_bytes() == (ROOT / p).read_bytes() for p in written)


def test_the_schema_knows_keys_with_and_without_dashes():
    properties = surfaces.json_schema(LISTED)["properties"]
    assert len(properties) == 2 * len(OPTIONS)
    assert properties["--lora_rank"] == {"$ref": "#/properties/lora_rank"}
    assert properties["lora_rank"] | {"minimum": 1, "maximum": 256, "default": 16} == properties["lora_rank"]
    assert properties["learning_rate"]["exclusiveMinimum"] == 0 and "krea" in properties["model_flavour"]["enum"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "unset"),
        (True, "true"),
        (1e-4, "0.0001"),
        (2.0, "2"),
        ((), "none"),
        ([1, 2], "1,2"),
        ("", '""'),
        (Path("a"), "a"),
    ],
)
def test_defaults_as_people_write_them(value, text):
    assert surfaces.shown(value) == text


def test_help_lists_panels_in_order_and_expert_options_only_when_asked():
    short, whole = surfaces.help_text(LISTED, False, width=80), surfaces.help_text(LISTED, True, width=80)
    assert "--lora_rank" in short and "--vae_dtype" not in short and "--vae_dtype" in whole
    panels = [line for line in whole.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert panels[:6] == ["Model:", "Data:", "Training:", "Adapter:", "Objective:", "Optimizer:"] and len(
        panels
    ) == len(set(panels))


@pytest.mark.parametrize("width", [20, 40, 80, 500])
def test_help_fits_the_terminal(width):
    text = surfaces.help_text(LISTED, True, width=width)
    assert max(map(len, text.splitlines())) <= max(40, min(120, width))


@pytest.mark.parametrize("width", [20, 40, 80, 500])
def test_long_help_fits_the_terminal(width):
    lines = [line for option in LISTED for line in surfaces.long_help(option, width=width).splitlines()]
    assert max(map(len, lines)) <= max(40, min(120, width))


def test_what_is_to_come_is_left_out_of_the_help_and_marked_elsewhere():
    whole, page = surfaces.help_text(LISTED, True, width=120), surfaces.markdown(LISTED).splitlines()
    properties = surfaces.json_schema(LISTED)["properties"]
    for key in retired.NOT_YET:
        assert f"--{key} " not in whole
        assert "\nNot yet available.\n" in surfaces.long_help(OPTIONS[key])
        assert any(f"`{key}` |" in row and "| Not yet available. " in row for row in page)
        assert properties[key]["description"].startswith("Not yet available. ")
    assert "Not yet" not in whole and "Not yet available.\n" not in surfaces.long_help(OPTIONS["seed"])


def test_choices_to_come_are_left_out_of_the_help_and_marked_elsewhere():
    assert "--lora_type standard [default: standard]" in surfaces.help_text(LISTED, True, width=120)
    assert "prodigy" not in surfaces.help_text([OPTIONS["optimizer"]], True)
    text = surfaces.long_help(OPTIONS["optimizer"])
    assert text.index("adamw_bf16 ") < text.index("  not yet available:\n") < text.index("  prodigy ")
    assert "Not yet available: `lycoris`." in surfaces.markdown([OPTIONS["lora_type"]])
    entry = surfaces.json_schema([OPTIONS["lora_type"]])["properties"]["lora_type"]
    assert entry["enum"] == ["standard", "lycoris"] and entry["description"].endswith("Not yet available: `lycoris`.")


def test_a_list_of_choices_and_a_text_of_lines_in_the_editors_schema():
    properties = surfaces.json_schema(LISTED)["properties"]
    assert "array" in properties["report_to"]["type"] and "wandb" in properties["report_to"]["items"]["enum"]
    assert "array" in properties["modelspec_comment"]["type"] and "object" in properties["tread_config"]["type"]


def test_help_shows_the_defaults_of_the_chosen_flavour():
    text = surfaces.help_text(LISTED, False, {"validation_guidance": 2.5}, width=120)
    assert "--validation_guidance number >= 0 [default: 2.5]" in text


def test_long_help_says_all_that_is_known():
    text = surfaces.long_help(OPTIONS["lr_end"])
    assert all(word in text for word in ("Optimizer, expert", ">= 0", "4e-07", "only if lr_scheduler=linear or cosine"))
    assert "formerly: validation_steps" in surfaces.long_help(OPTIONS["validation_step_interval"])
    assert "krea" in surfaces.long_help(OPTIONS["model_flavour"])


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ({}, ""),
        ({"low": 0}, ">= 0"),
        ({"low": 0, "low_open": True}, "> 0"),
        ({"high": 1, "high_open": True}, "< 1"),
        ({"low": 0, "low_open": True, "high": 1}, "(0, 1]"),
    ],
)
def test_bounds_as_people_write_them(bounds, text):
    assert Option("k", "float", 0, "help", "g", "basic", **bounds).bounds == text
