"""The pages tell the truth: screens are the program's, commands run, links lead somewhere, options exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from simpletuner import retired
from simpletuner.cli.surfaces import ROOT
from simpletuner.config import FORMER, OPTIONS
from simpletuner.data.options import NOT_YET as LATER_IN_DATASETS
from simpletuner.data.options import ImageEntry, TextEntry
from simpletuner.data.shuffle import Shuffle
from simpletuner.data.table import TableKeys
from simpletuner.models import families

_spec = importlib.util.spec_from_file_location("screens", Path(__file__).with_name("screens.py"))
assert _spec and _spec.loader
screens = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(screens)

NAMED = (  # pages that messages may point to
    "INSTALL", "TUTORIAL", "DATALOADER", "DREAMBOOTH", "TREAD", "quickstart/FLUX", "quickstart/FLUX_KONTEXT",
    "evaluation/CLIP_SCORES", "evaluation/EVAL_LOSS", "experimental/SCHEDULED_SAMPLING", "oom", "options",
    "configuration", "memory", "speed", "architecture",
)  # fmt: skip
TO_COME = "> Not yet available in this version."
FLAVOURS = families()["flux"].flavours
LATER = {  # page of a feature -> whether the feature is still to come
    "TREAD": "tread_config" in retired.NOT_YET,
    "quickstart/FLUX_KONTEXT": bool(FLAVOURS["kontext"].later),
    "evaluation/CLIP_SCORES": "evaluation_type" in retired.NOT_YET,
    "evaluation/EVAL_LOSS": "eval_steps_interval" in retired.NOT_YET,
    "experimental/SCHEDULED_SAMPLING": "scheduled_sampling_max_step_offset" in retired.NOT_YET,
}
# Runs of the pages are cut short; what the page says of a run's length is measured elsewhere.
SHORT = {
    "SIMPLETUNER_MAX_TRAIN_STEPS": "2",
    "SIMPLETUNER_VALIDATION_NUM_INFERENCE_STEPS": "1",
    "SIMPLETUNER_CHECKPOINT_STEP_INTERVAL": "2",
}
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")
CODE = re.compile(r"`([^`\n]+)`")
KEY = re.compile(r"(?:--)?([a-z][a-z0-9]*(?:_[a-z0-9]+)+)(?:=\S*)?")
WORDS = {"text_embeds", "proj_out"}  # a kind of dataset, a layer


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", NAMED)
def test_the_page_is_there(page):
    assert (ROOT / f"docs/{page}.md").is_file()


@pytest.mark.parametrize("page", LATER)
def test_a_page_about_a_feature_to_come_says_so_first(page):
    lines = (ROOT / f"docs/{page}.md").read_text("utf-8").splitlines()
    assert lines[0].startswith("# ") and lines[2].startswith(TO_COME) is LATER[page]


@pytest.mark.parametrize("page", screens.PAGES, ids=name)
def test_links_lead_somewhere(page):
    missing = [link for link in LINK.findall(page.read_text("utf-8")) if not (page.parent / link).exists()]
    assert missing == []


def test_the_readme_leads_to_every_page():
    linked = {(ROOT / link).resolve() for link in LINK.findall((ROOT / "README.md").read_text("utf-8"))}
    assert {(ROOT / f"docs/{page}.md").resolve() for page in NAMED} <= linked


@pytest.mark.parametrize("page", [p for p in screens.PAGES if p.name != "architecture.md"], ids=name)  # it names code
def test_every_option_that_a_page_names_exists(page):
    known = {*OPTIONS, *FORMER, *ImageEntry.model_fields, *TextEntry.model_fields, *LATER_IN_DATASETS, *WORDS}
    known |= Shuffle.model_fields.keys() | TableKeys.model_fields.keys()
    known |= {choice for option in OPTIONS.values() for choice, _ in option.choices} | retired.FORMER_SWITCHES.keys()
    words = (KEY.fullmatch(word) for code in CODE.findall(page.read_text("utf-8")) for word in code.split())
    unknown = {match[1] for match in words if match and match[1] not in known}
    assert {key for key in unknown if not retired.settle(key, None, "")[0]} == set()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return screens.workplace(tmp_path_factory.mktemp("clone"))


def checks(text):
    """Titles of the doctor's lines, without those of GPUs, which come and go with the machine."""
    titles = (line[9:24].strip() for line in text.splitlines() if line.startswith(("ok ", "warning ", "fail ")))
    return [title for title in titles if "GPU" not in title]


def test_the_doctors_screen_has_its_checks(place):
    (screen,) = [screen for screen in screens.screens() if screen.how == "once"]
    assert checks(screen.text) == checks(screens.printed(screen.command, place)) != []


COMPARED = [screen for screen in screens.screens() if screen.how != "once"]


@pytest.mark.parametrize("screen", COMPARED, ids=lambda screen: f"{screen.page.stem}: {screen.command}")
def test_a_screen_is_what_the_program_prints(screen, place):
    fresh = screens.printed(screen.command, place)
    if screen.how == "like":
        assert screens.masked(fresh) == screens.masked(screen.text)
    elif not screen.how:
        assert fresh == screen.text, "run: python tests/docs/screens.py"


@pytest.mark.parametrize("page", [p for p in screens.PAGES if screens.TABLE.search(p.read_text("utf-8"))], ids=name)
def test_tables_are_up_to_date(page):
    for match in screens.TABLE.finditer(page.read_text("utf-8")):
        assert match["text"] == screens.table(match["name"]), "run: python tests/docs/screens.py"


@pytest.mark.parametrize("page", [p for p in screens.PAGES if any(b.runs for b in screens.blocks(p))], ids=name)
def test_the_commands_of_a_page_run(page, tmp_path):
    folder = screens.workplace(tmp_path)
    for block in screens.blocks(page):
        if block.runs:
            done = screens.run(block.commands, folder, **SHORT)
            assert done.returncode == 0, f"{page}:{block.line}\n{block.code}\n{done.stdout}"


def test_what_is_not_run_says_why():
    blocks = [block for page in screens.PAGES for block in screens.blocks(page) if not block.runs]
    assert all(len(block.mark) > len("not run: ") or block.mark == "command two" for block in blocks) and blocks
