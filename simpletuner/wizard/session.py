"""The answers so far, and what they mean: the configuration that they would make, and what it would find."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from simpletuner import config as configuration
from simpletuner import rules
from simpletuner.config import OPTIONS, Config
from simpletuner.data.options import Data, ImageEntry
from simpletuner.errors import Problem, has_errors
from simpletuner.finding import Files
from simpletuner.machine import Machine
from simpletuner.models import FamilyRecord, Flavour, families
from simpletuner.models.options import Model
from simpletuner.wizard import documents as papers
from simpletuner.wizard import presets
from simpletuner.wizard.documents import Changes, Documents
from simpletuner.wizard.facts import Gallery, Survey
from simpletuner.wizard.presets import Preset
from simpletuner.wizard.questions import Field, Question, Wrong, fields

EXISTING = "existing"
NOT_A_PRESET = Preset(EXISTING, "the configuration that is there")
NEW_ENTRY = {"id": "pictures", "type": "local"}
PROMPTS = "prompts"  # the answer that holds their texts


class Session:
    """One conversation about one configuration. Nothing is written but what the gallery keeps for itself."""

    def __init__(self, documents: Documents, machine: Machine, gallery: Gallery, questions: Sequence[Question]):
        self.documents, self.machine, self.gallery, self.questions = documents, machine, gallery, tuple(questions)
        self.answers: dict[str, Any] = {}
        self.accepted: set[str] = set()  # names of answers that are the proposal, taken as it was
        self.earlier: dict[str, Any] = {}  # answers that were chosen and taken back
        self._drafts: dict[str, Config] = {}
        self._surveys: dict[str, tuple[Survey | None, list[Problem]]] = {}

    @cached_property
    def presets(self) -> dict[str, Preset]:
        return presets.offered()

    @property
    def preset(self) -> Preset:
        return self.presets.get(str(self.answers.get("start")), NOT_A_PRESET)

    @property
    def goes_on(self) -> bool:
        """Whether what is proposed is what the configuration has."""
        return self.answers.get("start") == EXISTING

    def give(self, field: Field, answer: Any, accepted: bool = False) -> None:
        """Takes an answer that `field.read` has returned."""
        self.answers[field.name] = answer
        (self.accepted.add if accepted else self.accepted.discard)(field.name)

    def take_back(self, field: Field) -> None:
        """Takes the answers from this field on back. What somebody chose is kept as `earlier`."""
        names = [one.name for one in fields(self.questions)]
        for name in [name for name in names[names.index(field.name) :] if name in self.answers]:
            answer = self.answers.pop(name)
            if name not in self.accepted:
                self.earlier[name] = answer
            self.accepted.discard(name)

    # ---- what the answers say

    @property
    def answered(self) -> list[Field]:
        """In their order. An answer before them that changes takes them back, so that each of them applies."""
        return [field for field in fields(self.questions) if field.name in self.answers]

    def options(self) -> dict[str, Any]:
        """Option -> value, of preset and answers."""
        found = dict(self.preset.values)
        for field in self.answered:
            found |= field.config(self, self.answers[field.name])
        return found

    @property
    def entry(self) -> dict[str, Any]:
        """The dataset as it would be, with all that its file says of it."""
        found = {**self.documents.entry, **self._entry_changes()}
        return {key: value for key, value in found.items() if value is not None}

    def draft(self, **more: Any) -> Config:
        """The configuration that would be written, with other values for some options."""
        values = {key: value for key, value in (self.options() | more).items() if value is not None}
        key = json.dumps(values, sort_keys=True, default=str)
        if key not in self._drafts:
            self._drafts[key] = configuration.load(self._files, values, {})[0]
        return self._drafts[key]

    @property
    def _files(self) -> Files:
        return Files(self.documents.config if self.documents.config_text is not None else None)

    def option(self, key: str) -> Any:
        """The value that the option would have, as plain data."""
        return self.draft().values()[key]

    def setting(self, key: str) -> Any:
        """The value that a key of the dataset would have."""
        if key in self.entry:
            return self.entry[key]
        inherited = getattr(self.draft()[Data], key, None)
        return inherited if key in Data.model_fields else ImageEntry.model_fields[key].get_default()

    @property
    def ranks(self) -> int:
        """Processes of the run as answered, one for each GPU."""
        if self.answers.get("gpus") == "auto":
            return max(1, len(self.machine.gpus))
        return len(self.answers.get("gpu_ids") or [0])

    @property
    def family(self) -> FamilyRecord:
        return families()[self.draft()[Model].model_family]

    @property
    def flavour(self) -> Flavour:
        return self.family.flavours[self.draft()[Model].model_flavour]

    def survey(self, **more: Any) -> tuple[Survey | None, list[Problem]]:
        """(what a scan finds, problems) of the dataset, with other values for some of its keys."""
        entry = {key: value for key, value in (self.entry | more).items() if value is not None}
        if "instance_data_dir" not in entry:
            return None, []
        key = json.dumps([entry, self.options()], sort_keys=True, default=str)
        if key not in self._surveys:
            self._surveys[key] = self.gallery.survey(self.draft(), entry)
        return self._surveys[key]

    # ---- what an answer may be

    def checked(self, key: str, value: Any) -> Any:
        """The option's value of an answer, as plain data. Wrong says why it cannot be had."""
        found, problems = configuration.load(None, {key: value}, {})
        wrong = next((p for p in problems if p.severity == "error" and key in p.keys), None)
        if wrong:
            raise Wrong(wrong.message.removeprefix(f"{key}: "), wrong.fix)
        return found.values()[key]

    def available(self, key: str) -> list[tuple[str, str]]:
        """The choices of an option that this version has, with their meaning."""
        return [
            (name, line)
            for name, line in OPTIONS[key].choices
            if not has_errors(configuration.load(None, {key: name}, {})[1])
        ]

    def findings(self) -> list[Problem]:
        """What the rules between options have against the answers together."""
        found = rules.check(self.draft())
        return [p for p in found if p.severity == "error" and papers.DATASETS not in p.keys]

    # ---- what is to be written

    def changes(self) -> Changes:
        """What the files lack of the answers. A value equal to the default is among it only if somebody chose it."""
        chosen = {field.key for field in self.answered if field.key and field.name not in self.accepted}
        values = self.options() | self._places()
        config = {key: value for key, value in values.items() if self._differs(key, value, key in chosen)}
        found = {key: value for key, value in self._entry_changes().items() if self._unlike(key, value, key in chosen)}
        return Changes(_in_order(config), found, self._prompts())

    def _places(self) -> dict[str, Any]:
        """Where the other files are."""
        found: dict[str, Any] = {papers.DATASETS: _written(self.documents.datasets)}
        if self._prompts() is not None:
            found[papers.PROMPTS] = _written(papers.prompts_path(self.documents))
        return found

    def _prompts(self) -> dict[str, str] | None:
        """Nickname -> prompt; None if the library stays as it is."""
        prompts = self.answers.get(PROMPTS)
        return dict(prompts) if prompts else None

    def _differs(self, key: str, value: Any, chosen: bool) -> bool:
        """Whether the option must be written."""
        if key in self.documents.values:
            return value is None or self._present[key] != _plain(value)
        default = self.flavour.defaults.get(key, OPTIONS[key].default)
        return value is not None and (chosen or _plain(value) != _plain(default))

    @cached_property
    def _present(self) -> Mapping[str, Any]:
        """Values of the files as they are; relative paths as written."""
        found = configuration.load(self._files, {}, {})[0].values()
        paths = {key for key, option in OPTIONS.items() if option.kind == "path"}
        return {key: self.documents.values.get(key) if key in paths else value for key, value in found.items()}

    def _entry_changes(self) -> dict[str, Any]:
        """What preset and answers say of the dataset; a new one is named first, and says where it is."""
        found: dict[str, Any] = {} if self.documents.place is not None else dict(NEW_ENTRY)
        for field in self.answered:
            found |= field.entry(self, self.answers[field.name])
        return found | {key: value for key, value in self.preset.entry.items() if key not in found}

    def _unlike(self, key: str, value: Any, chosen: bool) -> bool:
        """Whether the dataset's key must be written."""
        before = self.documents.entry
        if key in before:
            return value is None or before[key] != value
        default = ImageEntry.model_fields[key]
        inherited = getattr(self.draft()[Data], key, None) if key in Data.model_fields else default.get_default()
        return value is not None and (chosen or default.is_required() or _plain(value) != _plain(inherited))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _written(path: Path) -> str:
    """A path as it goes into a file: with forward slashes, below the working directory without it."""
    return Path(os.path.relpath(path)).as_posix() if path.is_relative_to(Path.cwd()) else path.as_posix()


def _in_order(values: Mapping[str, Any]) -> dict[str, Any]:
    """In the order in which options are declared: model first."""
    order = {key: number for number, key in enumerate(OPTIONS)}
    return dict(sorted(values.items(), key=lambda pair: order[pair[0]]))
