"""The prompts of a run's validation images, in order, each with a nickname that is fit for a file name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from simpletuner import reading
from simpletuner.errors import Problem
from simpletuner.registry import did_you_mean
from simpletuner.schema import Ge, Group, Le, Raw, parse
from simpletuner.types import Prompt
from simpletuner.validation import builtin, lines, nicknames, sizes
from simpletuner.validation.options import Validation

KEY = "user_prompt_library"
NICKNAME_KEYS = ("nickname", "shortname", "name")
TEXT_KEYS = ("prompt", "negative_prompt")
IGNORED = ("$schema", "_comment")
PLACEHOLDER = "<token>"


class Entry(Group, title="Prompt library entry"):
    """What one entry may set besides its texts; unset means the run's setting."""

    seed: Annotated[int | None, Ge(0)] = None
    """Number of the start noise."""

    resolution: str | None = None
    """Sizes, written like validation_resolution."""

    steps: Annotated[int | None, Ge(1), Le(1000)] = None
    """Sampling steps."""

    guidance: Annotated[float | None, Ge(0)] = None
    """The model's own guidance."""

    guidance_real: Annotated[float | None, Ge(1)] = None
    """Real classifier-free guidance; on above 1."""

    adapter_strength: float | None = None
    """Multiplies the adapter for this prompt."""


@dataclass(frozen=True)
class Row:
    """An entry as it was written."""

    nickname: str
    fields: dict[str, Any]
    where: Callable[..., str]  # where() is the entry, where("seed") that key


def _rows_of_object(document: reading.Document) -> tuple[list[Row], list[Problem]]:
    rows, problems = [], []
    for name, value in document.value.items():
        if name in IGNORED:
            continue
        if isinstance(value, str):
            value = {"prompt": value}
        if isinstance(value, dict):
            rows.append(Row(name, value, lambda *path, name=name: document.where(name, *path)))
        else:
            problems.append(_wrong_kind(f'"{name}"', document.where(name)))
    return rows, problems


def _rows_of_list(document: reading.Document) -> tuple[list[Row], list[Problem]]:
    rows, problems = [], []
    for index, value in enumerate(document.value):
        if not isinstance(value, dict):
            problems.append(_wrong_kind(f"item {index + 1}", document.where(index)))
            continue
        fields = dict(value)
        names = [fields.pop(key) for key in NICKNAME_KEYS if key in fields]
        if len(names) == 1 and isinstance(names[0], str):
            rows.append(Row(names[0], fields, lambda *path, index=index: document.where(index, *path)))
        else:
            reason = (
                "has more than one nickname"
                if len(names) > 1
                else "has no nickname"
                if not names
                else "has a nickname that is not a text"
            )
            problems.append(
                Problem(
                    f"item {index + 1} {reason}", where=document.where(index), fix='give it one "nickname"', keys=(KEY,)
                )
            )
    return rows, problems


def _wrong_kind(what: str, where: str) -> Problem:
    return Problem(
        f"{what} is neither a prompt nor an object", where=where, fix='write "nickname": "prompt"', keys=(KEY,)
    )


def _named(problem: Problem) -> Problem:
    """What is wrong with the file as a whole, under the option that names the file."""
    return replace(problem, message=f"{KEY}: {problem.message}", keys=(KEY,))


def _rows(path: Path) -> tuple[list[Row], list[Problem]]:
    if path.suffix.lower() == ".txt":
        entries, problems = lines.read(path)
        return [
            Row(f"line_{i:03d}", entry, lambda *_, where=where: where) for i, (entry, where) in enumerate(entries, 1)
        ], problems
    document = reading.read(path, names=True)
    if document.failed and document.value is None:
        return [], [_named(problem) if problem.where == str(path) else problem for problem in document.problems]
    if not isinstance(document.value, (dict, list)):
        fix = 'write {"nickname": "prompt"}'
        return [], [
            *document.problems,
            Problem("a prompt library is an object or a list", where=str(path), fix=fix, keys=(KEY,)),
        ]
    rows, problems = (_rows_of_object if isinstance(document.value, dict) else _rows_of_list)(document)
    return rows, [*document.problems, *problems]


def _texts(row: Row, fields: dict[str, Any]) -> tuple[dict[str, str], list[Problem]]:
    """Takes the texts out of `fields`."""
    texts, problems = {}, []
    for key in TEXT_KEYS:
        value = fields.pop(key, None)
        if isinstance(value, str):
            texts[key] = value
        elif value is not None or key == "prompt":
            reason = "has no prompt" if value is None else f"{key} is not a text"
            problems.append(
                Problem(f'"{row.nickname}": {reason}', where=row.where(key), fix=f'give "{key}" a text', keys=(KEY,))
            )
    return texts, problems


def prompt_of(row: Row) -> tuple[Prompt | None, list[Problem]]:
    """The Prompt of a row, still under the nickname as written; None if something is wrong with it."""
    fields = {reading.canonical_key(key): value for key, value in row.fields.items() if key not in IGNORED}
    if "caption" in fields:
        fields.setdefault("prompt", fields.pop("caption"))
    texts, problems = _texts(row, fields)
    known = (*TEXT_KEYS, *Entry.model_fields)
    for key in [key for key in fields if key not in known]:
        fix = "an editing model is not there yet; remove it" if key == "inputs" else did_you_mean(key, known)
        problems.append(Problem(f'"{row.nickname}": unknown key "{key}"', where=row.where(key), fix=fix, keys=(KEY,)))
    parsed, wrong = parse(
        [Entry], {key: Raw(value, row.where(key)) for key, value in fields.items() if key in Entry.model_fields}
    )
    entry = parsed["Entry"]
    assert isinstance(entry, Entry)
    wanted: tuple = ()
    if entry.resolution is not None:
        wanted, rounded = sizes.parse(entry.resolution, key="resolution", where=row.where("resolution"))
        wrong += rounded
    problems += wrong
    if "prompt" not in texts or any(p.severity == "error" for p in problems):
        return None, problems
    prompt = Prompt(
        row.nickname, texts["prompt"], texts.get("negative_prompt"), entry.seed, wanted,
        entry.steps, entry.guidance, entry.guidance_real, entry.adapter_strength,
    )  # fmt: skip
    return prompt, problems


def read_library(path: Path) -> tuple[list[Prompt], list[Problem]]:
    """The prompts of a library file under their nicknames as written; the same one with the same text is kept once."""
    rows, problems = _rows(path)
    seen: dict[str, tuple[Prompt, str]] = {}
    for row in rows:
        prompt, wrong = prompt_of(row)
        problems += wrong
        if not row.nickname.strip():
            problems.append(
                Problem("a nickname is empty", where=row.where(), fix="name it: it becomes a file name", keys=(KEY,))
            )
        elif prompt:
            first, first_where = seen.setdefault(row.nickname, (prompt, row.where()))
            if first.text != prompt.text:
                message = f'"{row.nickname}" is given twice with different prompts, first at {first_where}'
                problems.append(Problem(message, where=row.where(), fix="give each its own nickname", keys=(KEY,)))
            if PLACEHOLDER in prompt.text.lower():
                fix = "put the word that your captions use"
                message = f'"{row.nickname}" still holds {PLACEHOLDER}'
                problems.append(Problem(message, severity="warning", where=row.where("prompt"), fix=fix, keys=(KEY,)))
    return [prompt for prompt, _ in seen.values()], problems


def load(
    options: Validation, *, instance_prompt: str | None, first_caption: str | None
) -> tuple[list[Prompt], list[Problem]]:
    """All prompts of a run with unique nicknames, and what is wrong or was changed. Reads only the library file."""
    prompts: list[Prompt] = []
    problems: list[Problem] = []

    def add(prompt: Prompt) -> None:
        name = nicknames.unique(nicknames.for_file(prompt.nickname), (p.nickname for p in prompts))
        if name != prompt.nickname:
            message = f'nickname "{prompt.nickname}" becomes "{name}" in file names'
            problems.append(
                Problem(message, severity="notice", where=str(options.user_prompt_library or ""), keys=(KEY,))
            )
        prompts.append(Prompt(**(vars(prompt) | {"nickname": name})))

    if not options.validation_disable_unconditional:
        add(Prompt("unconditional", ""))
    if options.validation_prompt_library:
        for nickname, text in builtin.PROMPTS.items():
            add(Prompt(nickname, text))
    if options.user_prompt_library:
        library, problems_of_file = read_library(options.user_prompt_library)
        problems += problems_of_file
        for prompt in library:
            add(prompt)
    main = options.validation_prompt or instance_prompt or first_caption
    if main:
        add(Prompt("validation", main))
        if PLACEHOLDER in main.lower():
            fix = "put the word that your captions use"
            problems.append(
                Problem(
                    f"the validation prompt still holds {PLACEHOLDER}",
                    severity="warning",
                    fix=fix,
                    keys=("validation_prompt",),
                )
            )
    return prompts, problems


def texts(prompts: Iterable[Prompt], negative: str, guidance_real: float) -> list[str]:
    """Every text that sampling will ask for, each once: encode these while the text encoders are loaded."""
    found: dict[str, None] = {}
    for prompt in prompts:
        found[prompt.text] = None
        if (guidance_real if prompt.guidance_real is None else prompt.guidance_real) > 1:
            found[negative if prompt.negative is None else prompt.negative] = None
    return list(found)
