"""The files that come of answers: what is written, what stays, and what happens when that fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from handmade import CONFIG, DATASETS

from simpletuner import editing
from simpletuner.errors import ConfigError, DiskError
from simpletuner.machine import Machine
from simpletuner.wizard import answers, documents
from simpletuner.wizard.documents import Changes
from simpletuner.wizard.facts import Gallery
from simpletuner.wizard.graph import QUESTIONS
from simpletuner.wizard.session import Session

CPU = Machine((), 16 * 2**30, 16 * 2**30, 2)


@pytest.fixture
def proposed(home):
    """A session in which every proposal is accepted."""
    gallery = Gallery()
    session = Session(documents.read(Path("config/config.json")), CPU, gallery, QUESTIONS)
    answers.propose(session, {})
    yield session
    gallery.close()


def test_what_equals_the_default_is_written_only_if_somebody_chose_it(proposed):
    field = next(one for question in QUESTIONS for one in question.fields if one.name == "rank")
    assert "lora_rank" not in proposed.changes().config  # 16, as proposed
    answers.take(proposed, field, "16")
    assert proposed.changes().config["lora_rank"] == 16


def test_a_new_dataset_says_who_and_where_it_is_first(proposed):
    (entry,) = json.loads(documents.texts(proposed.documents, proposed.changes())[Path("config/multidatabackend.json")])
    assert list(entry)[:4] == ["id", "type", "instance_data_dir", "caption_strategy"]


def test_an_unchanged_configuration_gives_the_same_bytes(configured):
    found = documents.read(Path("config/config.json"))
    written = documents.texts(found, Changes({}, {}, None))
    assert written[Path("config/multidatabackend.json")] == DATASETS
    assert editing.edit(written[Path("config/config.json")], {}, remove=["$schema"]) == CONFIG.replace('"x",', '"x"')


def test_a_former_name_keeps_its_spelling(configured):
    found = documents.read(Path("config/config.json"))
    text = documents.texts(found, Changes({"checkpoints_total_limit": 9}, {}, None))[Path("config/config.json")]
    assert '"--save_total_limit": 9' in text and "checkpoints_total_limit" not in text


def test_a_second_dataset_is_left_alone_and_a_missing_one_is_added(configured):
    path = configured / "config/multidatabackend.json"
    path.write_text(DATASETS.replace('"id": "mine"', '"disabled": true, "id": "mine"'))
    found = documents.read(Path("config/config.json"))
    assert found.place is None
    text = documents.texts(found, Changes({}, {"id": "new", "type": "local"}, None))[found.datasets]
    assert text.startswith(path.read_text().rstrip()[:-1].rstrip()) and '"id": "new"' in text
    assert len(json.loads(text.replace("// the set", ""))) == 3


def test_all_files_are_written_or_none(home):
    first, second = home / "config/first.json", home / "config/second.json"
    first.parent.mkdir()
    first.write_text("before")
    second.mkdir()  # cannot be replaced by a file
    with pytest.raises(DiskError):
        documents.write({first: "after", second / "below": "x", home / "pictures/cat.png/no": "y"})
    assert first.read_text() == "before" and not (second / "below").exists()


def test_what_was_there_is_kept_beside_it(home):
    path = home / "config.json"
    path.write_text("{}")
    assert documents.write({path: '{"a": 1}', home / "new.json": "{}"}) == [path, home / "new.json"]
    assert path.with_name("config.json.bak").read_text() == "{}"
    assert not (home / "new.json.bak").exists()
    assert documents.write({path: '{"a": 1}'}) == []


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("config.toml", "", "configure writes JSON"),
        ("config.json", "[]", "expected an object of options"),
        ("config.json", "{", "not valid JSON"),
    ],
)
def test_what_cannot_be_edited_is_refused_with_its_place(home, name, text, reason):
    (home / name).write_text(text)
    with pytest.raises(ConfigError, match=reason):
        documents.read(Path(name))
