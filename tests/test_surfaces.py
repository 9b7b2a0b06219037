"""What is generated from the options is checked in, and equals what the options say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simpletuner import surfaces
from simpletuner.cli.surfaces import ROOT
from simpletuner.config import OPTIONS
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
    text = surfaces.help_text([o for o in LISTED if not o.choices], True, width=width)
    assert max(map(len, text.splitlines())) <= max(60, min(120, width))


def test_help_shows_the_defaults_of_the_chosen_flavour():
    text = surfaces.help_text(LISTED, False, {"validation_guidance": 2.5}, width=120)
    assert "--validation_guidance number >= 0 [default: 2.5]" in text


def test_long_help_says_all_that_is_known():
    text = surfaces.long_help(OPTIONS["lr_end"])
    assert all(word in text for word in ("Optimizer, expert", ">= 0", "4e-07", "only with lr_scheduler=linear|cosine"))
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
