"""The files of a configuration: as they lie on the disk, and as the answers would have them.

What the questions are not about stays as it is, comments and order too. All files are written, or none.
"""

from __future__ import annotations

import difflib
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import simpletuner
from simpletuner import editing, examples, newfile, reading
from simpletuner.errors import ConfigError, DiskError, raise_errors
from simpletuner.groups import FORMER

SCHEMA = "config.schema.json"
PROMPTS = "user_prompt_library"
DATASETS = "data_backend_config"
DATASETS_FILE, PROMPTS_FILE = "multidatabackend.json", "user_prompt_library.json"


@dataclass(frozen=True)
class Documents:
    """One configuration on the disk. A text is None where there is no file yet."""

    config: Path
    config_text: str | None
    values: Mapping[str, Any]  # of config.json, by today's names
    spelling: Mapping[str, str]  # today's name -> the former one under which the file has it
    datasets: Path
    datasets_text: str | None
    entry: Mapping[str, Any]  # of the first image set that takes part, canonical keys; empty if there is none
    place: int | None  # of that entry in the list
    num_image_sets: int  # that take part
    prompts: Path | None  # the library that the configuration names

    @property
    def prompts_text(self) -> str | None:
        return editing.read(self.prompts) if self.prompts and self.prompts.is_file() else None


def read(path: Path) -> Documents:
    """The documents of `path`, which need not exist. ConfigError names what cannot be read."""
    if path.suffix != ".json":
        raise ConfigError(f"{path}: configure writes JSON", fix="name a .json file, such as config/config.json")
    text, written = None, {}
    if path.exists():
        text, written = editing.read(path), _object(path)
    values = {FORMER.get(key, key): value for key, value in written.items()}
    datasets = _named(values, DATASETS) or path.with_name(DATASETS_FILE)
    found: Any = []
    if datasets.is_file():
        document = reading.read(datasets)
        raise_errors(document.problems)
        found = document.value
    if not isinstance(found, list):
        raise ConfigError(f"{datasets}: expected a list of datasets", fix="wrap it in [ ]")
    sets = [number for number, one in enumerate(found) if _takes_part(one)]
    first = found[sets[0]] if sets else {}
    return Documents(
        config=path,
        config_text=text,
        values=values,
        spelling={FORMER[key]: key for key in written if key in FORMER},
        datasets=datasets,
        datasets_text=editing.read(datasets) if datasets.is_file() else None,
        entry={reading.canonical_key(key): value for key, value in first.items()},
        place=sets[0] if sets else None,
        num_image_sets=len(sets),
        prompts=_named(values, PROMPTS),
    )


def _object(path: Path) -> dict[str, Any]:
    document = reading.read(path)
    raise_errors(document.problems)
    if not isinstance(document.value, dict):
        raise ConfigError("expected an object of options", where=document.where(), fix="wrap the options in { }")
    return {reading.canonical_key(key): value for key, value in document.value.items()}


def _named(values: Mapping[str, Any], key: str) -> Path | None:
    """The file that a key names, unless it belongs to the package: what lies there is not to be edited."""
    name = values.get(key)
    if not isinstance(name, str) or not name.strip() or name.startswith(examples.PREFIX):
        return None
    return Path(name).expanduser()


def _takes_part(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    values = {reading.canonical_key(key): value for key, value in entry.items()}
    off = values.get("disabled", values.get("disable", False))
    return values.get("dataset_type", "image") == "image" and str(off).lower() not in ("true", "1", "yes", "on")


@dataclass(frozen=True)
class Changes:
    """What the answers change. A value of None takes the key out."""

    config: Mapping[str, Any]
    entry: Mapping[str, Any]
    prompts: Mapping[str, str] | None  # nickname -> prompt; None: the library stays as it is


def texts(documents: Documents, changes: Changes) -> dict[Path, str]:
    """Every file that the answers need, with its new text; config.json last, since it names the others."""
    found: dict[Path, str] = {}
    if changes.prompts is not None:
        path = prompts_path(documents)
        before = documents.prompts_text if path == documents.prompts else None
        found[path] = _object_text(before, changes.prompts)
    found[documents.datasets] = _datasets_text(documents, changes.entry)
    found[documents.config.with_name(SCHEMA)] = _schema()
    config = {documents.spelling.get(key, key): value for key, value in changes.config.items()}
    if documents.config_text is None or "$schema" not in documents.values:
        config = {"$schema": f"./{SCHEMA}", **config}
    found[documents.config] = _object_text(documents.config_text, config)
    return found


def prompts_path(documents: Documents) -> Path:
    """Where own prompts go: into the library that is there if it is an object, else beside the configuration."""
    own = documents.config.with_name(PROMPTS_FILE)
    if documents.prompts is None or documents.prompts.suffix != ".json":
        return own
    value = reading.read(documents.prompts, names=True).value if documents.prompts.is_file() else {}
    return documents.prompts if isinstance(value, dict) else own


def _schema() -> str:
    return (Path(simpletuner.__file__).parent / SCHEMA).read_text("utf-8")


def _object_text(before: str | None, changes: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in changes.items() if value is not None}
    if before is None or not before.strip():
        return json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
    return editing.edit(before, kept, remove=[key for key, value in changes.items() if value is None])


def _datasets_text(documents: Documents, changes: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in changes.items() if value is not None}
    if documents.datasets_text is None or not documents.datasets_text.strip():
        return json.dumps([kept], indent=2, ensure_ascii=False) + "\n"
    if documents.place is None:
        return editing.append(documents.datasets_text, kept)
    removed = [key for key, value in changes.items() if value is None]
    return editing.edit_item(documents.datasets_text, documents.place, kept, removed)


def difference(texts: Mapping[Path, str]) -> list[str]:
    """The lines of a unified diff against what lies on the disk; a schema is named, not shown."""
    lines: list[str] = []
    for path, text in texts.items():
        before = editing.read(path) if path.is_file() else ""
        if before == text:
            continue
        head = f"{'=' if before else '+'} {path}"
        if path.name == SCHEMA:
            lines.append(f"{head}  (lets editors complete and explain options)")
        elif before:
            diff = list(difflib.unified_diff(before.splitlines(), text.splitlines(), n=1, lineterm=""))
            lines += [head, *(line for line in diff[2:] if not line.startswith("@@"))]
        else:
            lines += [head, *(f"+{line}" for line in text.splitlines())]
    return lines


def write(texts: Mapping[Path, str]) -> list[Path]:
    """Writes what differs, keeping what was there as .bak, and returns those paths. DiskError: nothing has changed."""
    before = {path: path.read_bytes() if path.exists() else None for path in texts}
    changed = [path for path, text in texts.items() if before[path] != text.encode()]
    done: list[Path] = []
    with _undisturbed():
        try:
            for path in changed:
                path.parent.mkdir(parents=True, exist_ok=True)
                done.append(path)
                editing.write(path, texts[path], backup=path.name != SCHEMA)
        except OSError as error:
            for path in done:
                _restore(path, before[path])
            message = f"{error.filename or changed[0]}: {error.strerror or error}"
            raise DiskError(message, fix="free some space, or check permissions") from error
    return changed


def _restore(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    elif path.read_bytes() != content:
        newfile.replace(path, content)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits until all files are written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
