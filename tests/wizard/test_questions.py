"""What is offered and proposed on which machine, for which pictures, and in which version."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from simpletuner import retired
from simpletuner.machine import Gpu, Machine
from simpletuner.wizard import answers, documents, presets
from simpletuner.wizard.facts import Gallery, folders_of_pictures
from simpletuner.wizard.graph import QUESTIONS
from simpletuner.wizard.questions import Field, Wrong, fields
from simpletuner.wizard.session import Session

GIB = 2**30
CPU = Machine((), 16 * GIB, 16 * GIB, 2)
FIELDS = {field.name: field for field in fields(QUESTIONS)}


def machine(gib: float, count: int = 1, capability: tuple[int, int] = (9, 0)) -> Machine:
    size = int(gib * GIB)
    gpus = tuple(Gpu(number, "NVIDIA H100", size, size, capability, "570") for number in range(count))
    return Machine(gpus, 64 * GIB, 60 * GIB, 16)


@pytest.fixture
def begin(home):
    """A function that gives a session on a machine, answered with its proposals up to a field."""
    galleries = []

    def session(on: Machine, until: str, **given) -> Session:
        galleries.append(Gallery())
        begun = Session(documents.read(Path("config/config.json")), on, galleries[-1], QUESTIONS)
        for field in FIELDS.values():
            if field.name == until:
                break
            if field.applies(begun):
                answers.take(begun, field, given.get(field.name, field.proposal(begun)), field.name not in given)
        return begun

    yield session
    for gallery in galleries:
        gallery.close()


def offered(session: Session, name: str) -> list[str]:
    return [one.value for one in FIELDS[name].choices(session)]


def test_there_are_at_most_twelve_questions_with_unlike_names():
    names = [field.name for field in fields(QUESTIONS)]
    assert len(QUESTIONS) <= 12 and len(set(names)) == len(names)
    assert all(isinstance(field, Field) and field.help.endswith(".") for field in fields(QUESTIONS))


def test_presets_come_when_their_options_do(monkeypatch):
    assert {"subject", "style", "80 GB", "nano"} <= set(presets.offered())
    kinds = {"int8-quanto", "int4-quanto"} & retired.NOT_YET_VALUES.get("base_model_precision", set())
    assert ("24 GB" in presets.offered()) == ("int8-quanto" not in kinds)
    monkeypatch.setitem(retired.NOT_YET_VALUES, "base_model_precision", set())
    monkeypatch.setattr(retired, "NOT_YET", retired.NOT_YET - {"blocks_to_swap"})
    assert {"12 GB", "24 GB"} <= set(presets.offered())


def test_without_a_gpu_nano_is_proposed(begin):
    session = begin(CPU, "size")
    assert (session.answers["start"], session.answers["model"]) == ("nano", "nano")
    session = begin(CPU, "size", start="style")
    assert session.answers["model"] == "nano"


def test_only_precisions_that_fit_are_offered(begin):
    large = begin(machine(80), "precision", trigger="a cat")
    assert offered(large, "precision")[0] == "bf16"
    assert all("does not fit" not in one.note for one in FIELDS["precision"].choices(large))
    small = begin(machine(6), "precision", trigger="a cat")
    (only,) = FIELDS["precision"].choices(small)
    assert "does not fit here" in only.note


def test_bf16_is_not_offered_to_cards_without_it(begin):
    assert "bf16" not in offered(begin(machine(80, capability=(7, 5)), "precision", trigger="a cat"), "precision")


def test_precisions_that_the_card_does_not_compute_are_not_offered(begin, monkeypatch):
    monkeypatch.setitem(retired.NOT_YET_VALUES, "base_model_precision", set())
    ampere, ada = (machine(80, capability=capability) for capability in ((8, 6), (8, 9)))
    assert "fp8-compute" not in offered(begin(ampere, "precision", trigger="a cat"), "precision")
    assert "fp8-compute" in offered(begin(ada, "precision", trigger="a cat"), "precision")


def test_full_precision_takes_an_optimizer_that_can(begin):
    session = begin(machine(80), "output", trigger="a cat", precision="fp32")
    assert session.option("optimizer") == "torch-adamw" and session.findings() == []


def test_gpus_are_chosen_where_there_are_several_and_this_version_can(begin, monkeypatch):
    monkeypatch.setattr(retired, "NOT_YET", retired.NOT_YET - {"gpu_mode", "gpu_ids"})
    assert offered(begin(machine(80), "gpus"), "gpus") == ["disabled"]
    session = begin(machine(80, 2), "gpus")
    assert offered(session, "gpus") == ["disabled", "auto", "manual"]
    session = begin(machine(80, 2), "model", gpus="manual", gpu_ids=[1])
    assert session.options()["gpu_ids"] == [1]
    with pytest.raises(Wrong, match="there is no GPU 2"):
        FIELDS["gpu_ids"].read(session, "0,2")


def test_a_tracker_is_offered_and_never_proposed(begin, monkeypatch):
    monkeypatch.setitem(retired.NOT_YET_VALUES, "report_to", set())
    monkeypatch.setattr(retired, "NOT_YET", retired.NOT_YET - {"push_to_hub", "model_card_private", "webhook_config"})
    session = begin(CPU, "reports")
    assert {"local", "wandb", "webhook"} <= set(offered(session, "reports"))
    assert FIELDS["reports"].proposal(session) == "local" and FIELDS["hub"].proposal(session) == "no"
    assert FIELDS["private"].proposal(session) == "yes"


@pytest.mark.parametrize(
    ("edges", "size"),
    [((2000,) * 4, 1024), ((2000, 800, 800, 800), 768), ((1100, 1100, 1100, 300), 1024), ((300,) * 4, 512)],
    ids=["large", "one large", "one small", "small"],
)
def test_the_size_is_the_largest_at_which_most_pictures_stay_sharp(begin, home, edges, size):
    (home / "mine").mkdir()
    for number, edge in enumerate(edges):
        Image.new("RGB", (edge, edge), (number, 0, 0)).save(home / "mine" / f"IMG_{number}.png")
    session = begin(machine(80), "size", images="mine", trigger="a cat")
    assert FIELDS["size"].proposal(session) == size


@pytest.mark.parametrize(
    ("names", "strategy"),
    [(["IMG_0001", "IMG_0002"], "instanceprompt"), (["a_red_cat", "a dog on a sofa"], "filename")],
)
def test_captions_are_proposed_from_what_lies_there(begin, home, names, strategy):
    (home / "mine").mkdir()
    for name in names:
        Image.new("RGB", (600, 600)).save(home / "mine" / f"{name}.png")
    session = begin(machine(80), "captions", images="mine")
    assert FIELDS["captions"].proposal(session) == strategy
    assert "textfile" not in offered(session, "captions")


def test_pictures_without_a_caption_among_others_are_asked_about(begin, home):
    (home / "pictures/banana.txt").unlink()
    session = begin(CPU, "missing_captions")
    assert FIELDS["missing_captions"].applies(session)
    assert "instance_prompt" not in offered(session, "missing_captions")
    with_phrase = begin(CPU, "missing_captions", trigger="an emoji")
    assert "instance_prompt" in offered(with_phrase, "missing_captions")


def test_length_is_taken_in_steps_and_in_epochs(begin):
    session = begin(CPU, "output", length="3 epochs")
    assert session.options()["num_train_epochs"] == 3 and session.options()["max_train_steps"] == 0
    assert FIELDS["length"].outcome(session)[0] == "6 steps, 2 an epoch"
    assert FIELDS["length"].read(session, "1e") == "1 epoch"


def test_the_time_is_that_of_training_alone(begin):
    session = begin(CPU, "output")
    assert FIELDS["length"].outcome(session)[1].endswith("sample images come on top")
    without = Session(session.documents, CPU, session.gallery, QUESTIONS)
    without.answers = session.answers | {"samples": "none"}
    assert "on top" not in FIELDS["length"].outcome(without)[1]


def test_samples_of_a_model_for_small_pictures_are_small(begin, configured):
    session = begin(CPU, "sample_size")
    assert session.answers["start"] == "existing" and session.answers["model"] == "nano"
    assert FIELDS["sample_size"].proposal(session) == "64x64"


def test_results_do_not_go_among_the_pictures_nor_into_another_run(begin, home):
    (home / "simpletuner-results/pictures/checkpoint-1").mkdir(parents=True)
    session = begin(CPU, "output")
    assert FIELDS["output"].proposal(session) == "simpletuner-results/pictures-2"
    with pytest.raises(Wrong, match="lies within the pictures"):
        FIELDS["output"].read(session, "pictures/results")


def test_prompts_hold_the_trigger_phrase(begin):
    session = begin(machine(80), "prompts", captions="instanceprompt", trigger="a photo of sks cat")
    named = FIELDS["prompts"].proposal(session)
    assert all("sks cat" in prompt for prompt in named.values()) and len(named) == 4
    assert FIELDS["prompts"].read(session, "a cat | a dog") == {"a_cat": "a cat", "a_dog": "a dog"}


def test_folders_of_pictures_are_found_near_by(home):
    for name in ("more/deep", ".hidden", "simpletuner-results"):
        (home / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(home / name / "one.png")
    assert folders_of_pictures(home) == [("pictures", 12), ("more/deep", 1)]
