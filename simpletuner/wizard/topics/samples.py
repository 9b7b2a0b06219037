"""Question 11: the prompts of the sample images, their size and their steps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from simpletuner.groups import OPTIONS
from simpletuner.validation import nicknames, prompts, sizes
from simpletuner.validation.options import Validation
from simpletuner.validation.shots import Defaults
from simpletuner.wizard.questions import Choice, Field, Question, Wrong, choice, option, text
from simpletuner.wizard.session import PROMPTS, Session
from simpletuner.wizard.topics.pictures import words

OWN, LIBRARY, NONE = "here", "library", "none"
BETWEEN = "|"
NICKNAME_WORDS = 5
PROPOSED = 3  # captions
LEAST, SMALL = 16, 512  # pixels of the training images, between which samples are no larger; less counts megapixels
LIBRARY_KEY, SIZE, STEPS, OFF = (
    "user_prompt_library", "validation_resolution", "validation_num_inference_steps", "validation_disable",
)  # fmt: skip
HELP = "Sample images show while training what the model makes of your words. They decide which checkpoint is best."
PROMPTS_HELP = (
    f"What the sample images show; several with {BETWEEN} between them. Use the words of your captions. "
    "They go to a prompt library, a file in which you can change them at any time."
)


def _sources(session: Session) -> Sequence[Choice]:
    library = session.documents.prompts
    kept = f"a file of prompts: {library}" if library else "a file of prompts that you have"
    return (
        Choice(OWN, "a few prompts, for a library of their own"),
        Choice(LIBRARY, kept),
        Choice(NONE, "no sample images at all"),
    )


def _source(session: Session) -> str:
    if session.option(OFF):
        return NONE
    library = session.documents.prompts
    return LIBRARY if library and library.is_file() else OWN


def _proposed(session: Session) -> dict[str, str]:
    """From the trigger phrase, else the first captions."""
    phrase = session.answers.get("trigger")
    if not phrase:
        return _named(words(session)[:PROPOSED]) or _named(["a photo of a red fox in the snow"])
    name = phrase.removeprefix("a photo of ")
    return _named((scene.format(phrase=phrase, name=name) for scene in session.preset.scenes), phrase)


def _named(found: Iterable[str], phrase: str = "") -> dict[str, str]:
    """Each prompt under a nickname made of its first words besides those of the trigger phrase."""
    named: dict[str, str] = {}
    for prompt in found:
        rest = (prompt.replace(phrase, "") if phrase else prompt) or prompt
        parts = re.findall(r"\w+", rest.lower())[:NICKNAME_WORDS]
        named[nicknames.unique(nicknames.for_file("_".join(parts) or "prompt"), named)] = prompt
    return named


def _prompts(_: Session, given: Any) -> dict[str, str]:
    if isinstance(given, dict):
        if not given or not all(isinstance(prompt, str) and prompt.strip() for prompt in given.values()):
            raise Wrong("a prompt is a text", 'write { "nickname": "prompt" }')
        return dict(given)
    found = [part.strip() for part in str(given).split(BETWEEN) if part.strip()]
    if not found:
        raise Wrong("no prompt is given")
    return _named(dict.fromkeys(found))


def _library_proposal(session: Session) -> str | None:
    return str(session.documents.prompts) if session.documents.prompts else None


def _library(session: Session, given: Any) -> str:
    name = text(session, given)
    place = Path(name).expanduser()
    if not name or not place.is_file():
        raise Wrong(f"there is no file {name}" if name else "no file is named")
    _, problems = prompts.read_library(place)
    if wrong := [problem for problem in problems if problem.severity == "error"]:
        raise Wrong(wrong[0].message, wrong[0].fix)
    return name


def _size_proposal(session: Session) -> str:
    """The option's; of a model for small pictures the size that it trains on."""
    edge = session.setting("resolution")
    fixed = session.goes_on or SIZE in {**session.documents.values, **session.preset.values}
    return str(session.option(SIZE)) if fixed or not LEAST <= edge < SMALL else f"{edge:g}x{edge:g}"


def _size(session: Session, given: Any) -> str:
    written = text(session, given)
    _, problems = sizes.parse(written)
    if wrong := [problem for problem in problems if problem.severity == "error"]:
        raise Wrong(wrong[0].message.partition(": ")[2], wrong[0].fix)
    return written


def _steps(session: Session) -> int:
    return Defaults.of(session.draft()[Validation]).steps


def _steps_values(session: Session, answer: int) -> Mapping[str, Any]:
    """The number that would be taken anyway needs no line, unless somebody asks for it."""
    return {} if "steps" in session.accepted else {STEPS: answer}


def _shown(session: Session) -> bool:
    return session.answers.get("samples") != NONE


SAMPLES = Question(
    "Which validation prompts?",
    (
        choice("samples", "Prompts from", HELP, _sources, _source, config=lambda _, answer: {OFF: answer == NONE}),
        Field(
            PROMPTS, "Prompts", PROMPTS_HELP, _proposed, _prompts,
            applies=lambda session: session.answers.get("samples") == OWN,
        ),
        Field(
            "library", "File", OPTIONS[LIBRARY_KEY].help, _library_proposal, _library,
            applies=lambda session: session.answers.get("samples") == LIBRARY,
            config=lambda _, answer: {LIBRARY_KEY: answer}, path=True,
        ),
        option("sample_size", "Size of the images", SIZE, proposal=_size_proposal, read=_size, applies=_shown),
        option("steps", "Sampling steps", STEPS, proposal=_steps, applies=_shown, config=_steps_values),
    ),
)  # fmt: skip
