"""Questions 4 and 5: where the pictures are, and the words for them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simpletuner import examples
from simpletuner.data import captions
from simpletuner.data.options import ImageEntry
from simpletuner.data.reasons import said
from simpletuner.data.scan import Scan
from simpletuner.groups import OPTIONS
from simpletuner.wizard.facts import Survey, folders_of_pictures
from simpletuner.wizard.questions import Choice, Field, Question, Wrong, choice, text
from simpletuner.wizard.session import Session

FOLDER, STRATEGY, PROMPT, MISSING = "instance_data_dir", "caption_strategy", "instance_prompt", "missing_caption"
TEXTFILE, FILENAME, TRIGGER = "textfile", "filename", "instanceprompt"
SHOWN = 3  # names, folders or captions of many
NUMBERED = re.compile(r"(?i)^(img|dsc|dscn|dscf|pxl|image|photo|picture|scan|screenshot)?[\W\d_]*$")  # as cameras do
SAY_NOTHING = ("pictures", "photos", "images", "img", "imgs", "data", "dataset", "train", "training")  # of folders
NAME_IS_CAPTION = 0.6  # share of the names that say something, from which they may serve as captions
REPEATS = "repeats"  # a set that is too small for one update is the matter of a later question
UNFIT = re.compile(r"[^\w.-]+")  # in a name for files
FOLDER_HELP = "A folder with the pictures, read with all folders below it. Nothing is ever written there."
# While only the pictures themselves are looked at, nothing leaves any out or asks for words.
OPEN: Mapping[str, Any] = {
    STRATEGY: TRIGGER, PROMPT: "a picture", MISSING: None,
    "crop": None, "crop_aspect": None, "crop_aspect_buckets": None, "resolution": None, "resolution_type": None,
    "minimum_image_size": None, "maximum_image_size": None, "target_downsample_size": None,
    "max_upscale_threshold": None, "max_num_samples": None, "train_batch_size": None,
    "minimum_aspect_ratio": None, "maximum_aspect_ratio": None,
}  # fmt: skip
MISSING_MEANS = {
    "skip": "leaves them out",
    "instance_prompt": "uses the trigger phrase",
    "empty": "trains them without words",
}


def _folder_seen(_: Session) -> Sequence[str]:
    found = folders_of_pictures(Path())[:SHOWN]
    return [f"found {count} picture{'s' * (count != 1)} in {name}" for name, count in found]


def folder_proposal(session: Session) -> str | None:
    if name := session.entry.get(FOLDER):
        return str(name)
    found = folders_of_pictures(Path())
    return found[0][0] if found else session.preset.folder or None


def _folder(session: Session, given: Any) -> str:
    if given is None:
        raise Wrong("the folder of the pictures is not known", "--images FOLDER")
    name = text(session, given)
    if not name:
        raise Wrong("no folder was named", "give its path")
    place = Path(examples.resolve(name)).expanduser()
    if not place.is_dir():
        raise Wrong(f"{name} is a file" if place.is_file() else f"there is no folder {name}", "give its path")
    survey, problems = session.survey(**OPEN, **{FOLDER: name})
    found = [*problems, *(survey.problems if survey else ())]
    wrong = [problem for problem in found if problem.severity == "error" and REPEATS not in problem.keys]
    if survey is None or wrong:
        message = wrong[0].message.replace(f"dataset {session.entry['id']}", name)
        raise Wrong(message.removeprefix(f"{name}: "), wrong[0].fix)
    return name


def _folder_entry(session: Session, answer: str) -> Mapping[str, Any]:
    """A new dataset is named after its folder."""
    own = {} if session.documents.place is not None else {"id": plain_name(answer)}
    return {**own, FOLDER: answer}


def plain_name(folder: str) -> str:
    """The last part of a path as a name for files and messages."""
    return UNFIT.sub("-", Path(examples.resolve(folder)).expanduser().resolve().name).strip("-.") or "pictures"


def plain(session: Session) -> Survey | None:
    """All pictures that can be read, whatever their size and words."""
    return session.survey(**OPEN)[0]


def _scan(session: Session) -> Scan:
    survey = plain(session)
    assert survey is not None and survey.shelf is not None  # the folder has been looked at
    return survey.shelf.scan


def _folder_outcome(session: Session) -> Sequence[str]:
    scan = _scan(session)
    sizes = sorted((item.sample.size for item in scan.items), key=lambda size: size.area)
    span = str(sizes[0]) if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
    count = len(sizes)
    lines = [f"{count} picture{'s' * (count != 1)}, {span}; captions beside {_beside(session)}"]
    lines += [f"left out: {item.path}: {said(item)}" for item in scan.left_out[:SHOWN]]
    more = len(scan.left_out) - SHOWN
    return lines + ([f"and {more} more"] if more > 0 else [])


def _beside(session: Session) -> int:
    """Pictures with a caption file."""
    root = Path(examples.resolve(str(session.entry[FOLDER]))).expanduser()
    ending = session.setting("caption_extension")
    paths = [item.sample.path for item in _scan(session).items]
    return sum(any((root / place).is_file() for place in captions.caption_paths(path, ending)) for path in paths)


PICTURES = Question(
    "Where are the pictures?",
    (
        Field(
            "images", "Folder", FOLDER_HELP, folder_proposal, _folder,
            entry=_folder_entry, outcome=_folder_outcome, path=True,
        ),
    ),
    seen=_folder_seen,
)  # fmt: skip


# ---- question 5


def _strategies(session: Session) -> Sequence[Choice]:
    items, beside = _scan(session).items, _beside(session)
    first = captions.from_name(items[0].sample.path)
    notes = {
        TEXTFILE: f"a text file beside each: {beside} of {len(items)} have one",
        FILENAME: f'the file name, such as "{first}"',
        TRIGGER: "one phrase for all, the trigger",
    }
    offered = [name for name, _ in session.available(STRATEGY) if name in notes]
    return [Choice(name, notes[name]) for name in offered if name != TEXTFILE or beside]


def _strategy_proposal(session: Session) -> str:
    offered = [one.value for one in _strategies(session)]
    present = session.documents.entry.get(STRATEGY)
    if present in offered and session.documents.entry.get(FOLDER) == session.entry.get(FOLDER):
        return str(present)
    items, beside = _scan(session).items, _beside(session)
    if beside * 2 >= len(items):
        return TEXTFILE
    names = [captions.from_name(item.sample.path) for item in items]
    telling = sum(not NUMBERED.match(name) and " " in name for name in names)
    return FILENAME if telling >= NAME_IS_CAPTION * len(names) else TRIGGER


def _trigger_proposal(session: Session) -> str:
    if (present := session.documents.entry.get(PROMPT)) and isinstance(present, str):
        return present
    if session.answers["captions"] != TRIGGER:
        return ""
    name = plain_name(str(session.entry[FOLDER]))
    told = captions.from_name(name).replace("-", " ") if name.lower() not in SAY_NOTHING else "mysubject"
    return session.preset.phrase.format(told)


def _trigger(session: Session, given: Any) -> str:
    phrase = text(session, given)
    if not phrase and session.answers["captions"] == TRIGGER:
        raise Wrong("one phrase for all pictures needs a phrase", 'for example "a photo of mysubject"')
    return phrase


def _trigger_entry(session: Session, phrase: str) -> Mapping[str, Any]:
    before = phrase and session.answers["captions"] != TRIGGER
    return {PROMPT: phrase or None, "prepend_instance_prompt": True if before else None}


def _without_words(session: Session) -> int:
    """Pictures without a caption file, where captions come from files."""
    return len(_scan(session).items) - _beside(session)


def _missing(session: Session) -> Sequence[Choice]:
    phrase = session.answers.get("trigger")
    return [Choice(name, note) for name, note in MISSING_MEANS.items() if name != "instance_prompt" or phrase]


def _missing_proposal(session: Session) -> str:
    present = session.documents.entry.get(MISSING)
    offered = [one.value for one in _missing(session)]
    return str(present) if present in offered else offered[0]


def words(session: Session) -> list[str]:
    """The first captions of the set, each once."""
    survey, _ = session.survey()
    items = survey.shelf.items if survey and survey.shelf else []
    return list(Counter(item.sample.captions[0] for item in items if item.sample.captions[0]))


CAPTIONS = Question(
    "How are they captioned, and is there a trigger word?",
    (
        choice(
            "captions", "Captions from", OPTIONS[STRATEGY].help, _strategies, _strategy_proposal, key=STRATEGY,
            entry=lambda _, answer: {STRATEGY: answer},
        ),
        Field(
            "trigger",
            "Trigger phrase",
            "Words that will call up what is learned. As the one caption of all pictures, or in front of each caption "
            "that does not hold them; empty for none. A rare word learns more cleanly than a common one.",
            _trigger_proposal, _trigger, entry=_trigger_entry,
        ),
        choice(
            "missing_captions", "Pictures without one", f"{ImageEntry.model_fields[MISSING].description}",
            _missing, _missing_proposal,
            applies=lambda session: session.answers.get("captions") == TEXTFILE and _without_words(session) > 0,
            entry=lambda _, answer: {MISSING: answer},
            outcome=lambda session: [f'"{caption}"' for caption in words(session)[:SHOWN]],
        ),
    ),
)  # fmt: skip
