"""`simpletuner configure` on a pseudo-terminal, as a person meets it."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from handmade import CONFIG, DATASETS, PROMPTS
from talk import Talk

PROMPTS_IN_ORDER = (  # of a new configuration for nano
    "Start: ", "Model: ", "Folder [", "Captions from: ", "Trigger phrase", "Size [", "Crop: ", "Rank [", "Precision: ",
    "Length [", "Output folder [", "Steps between saves [", "Keep how many, 0 for all [", "Prompts from: ",
    "Prompts [these]", "Size of the images [", "Sampling steps [", "Write these files (yes/no): ",
)  # fmt: skip
WRITTEN = ("config.json", "multidatabackend.json", "user_prompt_library.json", "config.schema.json")
GO_ON = "Go on from the answers of last time (yes/no): "


def files(home) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}


def run_through(talk: Talk, answers: dict[str, str] | None = None, prompts=PROMPTS_IN_ORDER) -> None:
    """Answers every prompt, with Enter where nothing else is said."""
    for prompt in prompts:
        talk.answer(prompt, (answers or {}).get(prompt, ""))


def test_twelve_pictures_become_a_finished_training_and_the_answers_give_the_same_files(home):
    with Talk(home, "configure", "--save-answers", "answers.json") as talk:
        run_through(talk, {"Length [": "3", "Sampling steps [": "2"})
        assert talk.end() == 0, talk.shown
        assert "12 pictures, 64x64; captions beside 12" in talk.shown
        assert talk.shown.rstrip().endswith("next: simpletuner train")
    written = {name: (home / "config" / name).read_bytes() for name in WRITTEN}
    with Talk(home, "train") as talk:
        assert talk.end(300) == 0, talk.shown
    assert (home / "simpletuner-results/pictures/pytorch_lora_weights.safetensors").exists()
    shutil.rmtree(home / "config")
    shutil.rmtree(home / "simpletuner-results")
    with Talk(home, "configure", "--answers", "answers.json", "--no-input") as talk:
        assert talk.end() == 0, talk.shown
    assert {name: (home / "config" / name).read_bytes() for name in WRITTEN} == written


def test_a_dumb_terminal_of_forty_columns_gets_plain_short_lines(home):
    prompts = [re.sub(r": $", " [", prompt) for prompt in PROMPTS_IN_ORDER]
    with Talk(home, "configure", term="dumb", columns=40, rows=15) as talk:
        run_through(talk, {"Start [": "4", "Length [": "3"}, prompts)
        assert talk.end() == 0, talk.shown
    assert "\x1b" not in talk.raw
    conversation = talk.shown[: talk.shown.index("+ config/")]
    assert [line for line in conversation.splitlines() if len(line) > 40 and "/" not in line] == []
    assert json.loads((home / "config/config.json").read_text())["max_train_steps"] == 3


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_a_question_that_is_longer_than_the_line_stands_before_its_answers(home, term):
    with Talk(home, "configure", term=term, columns=40) as talk:
        talk.answer("Start", "nano")
        talk.wait_for("Model")
        assert talk.interrupt() == 130, talk.shown
    with Talk(home, "configure", term=term, columns=40) as talk:
        talk.wait_for("\nGo on from the answers of last time\n")
        talk.wait_for("(yes/no) [yes]: " if term == "dumb" else "(yes/no): yes")
        talk.send("no\r")
        talk.wait_for("Start")


def test_ctrl_c_at_any_question_leaves_nothing_and_the_next_time_goes_on_from_there(home):
    before = files(home)
    for number, prompt in enumerate(PROMPTS_IN_ORDER):
        last = PROMPTS_IN_ORDER[number - 1] if number else ""
        with Talk(home, "configure") as talk:
            if number > 1:
                talk.answer(GO_ON)
            if last:
                talk.answer(last, "3" if last == "Length [" else "")
            talk.wait_for(prompt)
            assert talk.interrupt() == 130, talk.shown
            assert "Nothing was written." in talk.shown
            assert ("goes on from here" in talk.shown) == (number > 0)
        assert files(home) == before
    with Talk(home, "configure") as talk:
        talk.answer(GO_ON)
        talk.answer("Write these files (yes/no): ")
        assert talk.end() == 0, talk.shown
    assert json.loads((home / "config/config.json").read_text())["max_train_steps"] == 3
    assert not list((home.parent / "state").rglob("configure/*.json"))


def test_a_wrong_answer_is_asked_again_with_the_reason(home):
    wrong = {
        "Start: ": ("nothing", '"nothing" is none of the choices'),
        "Folder [": ("nowhere", "there is no folder nowhere"),
        "Size [": ("32", "resolution 32 is below 64 px"),
        "Rank [": ("999", '"999" is outside [1, 256]'),
        "Length [": ("soon", '"soon" is not a length'),
        "Output folder [": ("pictures/out", "lies within the pictures"),
        "Steps between saves [": ("often", "give a whole number"),
        "Size of the images [": ("big", '"big" is not a size'),
        "Sampling steps [": ("0", '"0" is not >= 1'),
    }
    with Talk(home, "configure") as talk:
        for prompt in PROMPTS_IN_ORDER:
            if prompt in wrong:
                answer, reason = wrong[prompt]
                talk.answer(prompt, answer)
                talk.wait_for(reason)
            talk.answer(prompt)
        assert talk.end() == 0, talk.shown


def test_arrows_move_question_marks_explain_and_less_than_goes_back(home):
    with Talk(home, "configure") as talk:
        talk.wait_for("Start: 6 nano")
        talk.send("\x1b[B")  # down, past the end
        talk.wait_for("Start: 1 subject")
        talk.send("\x1b[A")
        talk.wait_for("Start: 6 nano")
        talk.send("?")
        talk.wait_for("A start is a handful of settings")
        run_through(talk, {}, PROMPTS_IN_ORDER[:7])
        talk.answer("Rank [16]", "12")
        talk.answer("Precision: ", "<")
        talk.answer("Rank [12]", "<")
        talk.answer("Crop: 2 centre", "keep")
        run_through(talk, {}, ("Rank [12]", *PROMPTS_IN_ORDER[8:]))
        assert talk.end() == 0, talk.shown
    assert json.loads((home / "config/config.json").read_text())["lora_rank"] == 12
    assert "crop_style" not in json.loads((home / "config/multidatabackend.json").read_text())[0]


def test_an_existing_configuration_is_edited_and_loses_nothing(configured):
    prompts = [prompt for prompt in PROMPTS_IN_ORDER if prompt != "Prompts [these]"]
    prompts.insert(prompts.index("Size of the images ["), "File [config/mine.json]")
    with Talk(configured, "configure") as talk:
        run_through(talk, {"Rank [": "8", "Keep how many, 0 for all [": "2"}, prompts)
        assert talk.end() == 0, talk.shown
    changed = CONFIG.replace('"--lora_rank": 4', '"--lora_rank": 8').replace('limit": "3"', 'limit": 2')
    changed = changed.replace('"x",\n}', '"x",\n  "$schema": "./config.schema.json"\n}')
    assert (configured / "config/config.json").read_text() == changed
    assert (configured / "config/config.json.bak").read_text() == CONFIG
    assert (configured / "config/multidatabackend.json").read_text() == DATASETS
    assert (configured / "config/mine.json").read_text() == PROMPTS


def test_a_set_that_is_smaller_than_an_update_is_offered_the_repeats_that_work(configured):
    (configured / "config/multidatabackend.json").write_text(DATASETS.replace(', "repeats": 1', ""))
    with Talk(configured, "configure") as talk:
        run_through(talk, {}, PROMPTS_IN_ORDER[:7])
        talk.answer("The set is smaller than one update. Repeats [1]", "0")
        talk.wait_for("12 pictures met 1 times do not fill an update of 16; 1 is enough")
        talk.answer("Repeats [1]")
        talk.wait_for("Rank [4]")


@pytest.mark.parametrize("word", ["no", "<"])
def test_without_a_yes_nothing_is_written(home, word):
    with Talk(home, "configure") as talk:
        run_through(talk, {}, PROMPTS_IN_ORDER[:-1])
        talk.answer("Write these files (yes/no): ", word)
        if word == "<":
            talk.answer("Sampling steps [", "4")
            talk.answer("Write these files (yes/no): ", "no")
        assert talk.end() == 130, talk.shown
    assert not (home / "config").exists()
