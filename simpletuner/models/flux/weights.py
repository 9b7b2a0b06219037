"""Where each part of a Flux lies, its configuration, its weight files and their fingerprint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from simpletuner.errors import ConfigError, Problem, raise_errors
from simpletuner.models import Flavour
from simpletuner.models.digests import combine, digests
from simpletuner.models.options import Model
from simpletuner.models.places import PICKLE, Place


class Kind(NamedTuple):
    """How a part looks on disk."""

    configs: tuple[str, ...]  # any of these says that the part is there
    stem: str = ""  # of its weight files; empty: it has none


WEIGHTS = "diffusion_pytorch_model"
TOKENIZER = Kind(("tokenizer.json", "vocab.json", "spiece.model"))
KINDS = {
    "scheduler": Kind(("scheduler_config.json",)),
    "transformer": Kind(("config.json",), WEIGHTS),
    "vae": Kind(("config.json",), WEIGHTS),
    "text_encoder": Kind(("config.json",), "model"),
    "text_encoder_2": Kind(("config.json",), "model"),
    "tokenizer": TOKENIZER,
    "tokenizer_2": TOKENIZER,
}
ENCODERS = ("text_encoder", "text_encoder_2")
TEXT_PARTS = (*ENCODERS, "tokenizer", "tokenizer_2")
LONGEST = 512  # T5 tokens
MAIN = "pretrained_model_name_or_path"
ROOT = {"none", "null", ""}


class Weights:
    """The parts of one model. Small files are fetched when asked for, weights only by `files`; `offline` fetches none.

    Precisions are written as torch prints them.
    """

    def __init__(self, model: Model, flavour: Flavour, *, offline: bool = False):
        self.model, self.flavour, self.offline = model, flavour, offline
        self._folders: dict[str, tuple[Path, str]] = {}  # part -> (root of its place, folder within)
        self._files: dict[str, list[Path]] = {}

    def _place(self, key: str, name: str) -> Place:
        main = key in (MAIN, "model_flavour")  # a revision names a commit of this repository only
        return Place(name, key, self.model.revision if main else None, self.model.cache_dir, self.offline)

    @cached_property
    def main(self) -> Place:
        given = self.model.pretrained_model_name_or_path
        return self._place(MAIN if given else "model_flavour", given or self.flavour.repository)

    def origin(self, part: str) -> tuple[Place, tuple[str, ...]]:
        """The place of a part, and the folders in it where it may lie ("" is the root), in order."""
        options = {
            "transformer": "pretrained_transformer_model_name_or_path",
            "vae": "pretrained_vae_model_name_or_path",
            "text_encoder_2": "pretrained_t5_model_name_or_path",
        }
        name = getattr(self.model, options[part]) if part in options else None
        if not name:
            return self.main, (part,)
        place = self._place(options[part], name)
        if part != "transformer":
            return place, (part, "")
        folder = (self.model.pretrained_transformer_subfolder or "").strip().strip("/")
        return place, ("" if folder.lower() in ROOT else folder,)

    def folder(self, part: str) -> Path:
        """The folder that holds the part's configuration. ConfigError if there is none."""
        if part not in self._folders:
            self._folders[part] = self._find_folder(part)
        return Path(*self._folders[part])

    def within(self, part: str) -> str:
        """The part's folder inside its place; empty for the root."""
        self.folder(part)
        return self._folders[part][1]

    def _find_folder(self, part: str) -> tuple[Path, str]:
        place, places = self.origin(part)
        kind = KINDS[part]
        small = [*kind.configs, f"{kind.stem}.safetensors.index*.json"] if kind.stem else ["*"]
        root = place.fetch(str(Path(where, name)) for where in places for name in small)
        for where in places:
            if any((root / where / config).is_file() for config in kind.configs):
                return root, where
        wanted = " or ".join(str(Path(where, kind.configs[0])) for where in places)
        raise ConfigError(
            f"{place.option}: {place.name} has no {wanted}",
            fix=f"give a model in the diffusers layout: {', '.join(KINDS)}",
        )

    def config(self, part: str) -> dict[str, Any]:
        """The part's configuration; for a tokenizer, its tokenizer_config.json."""
        name = "tokenizer_config.json" if KINDS[part] is TOKENIZER else KINDS[part].configs[0]
        path = self.folder(part) / name
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}

    def check(self) -> None:
        """Raises one error with everything that is missing; a gated repository shows before weights are fetched."""
        problems: list[Problem] = []
        for part, kind in KINDS.items():
            try:
                self.folder(part)
                if kind.stem and self.origin(part)[0].local:
                    self.files(part)
            except ConfigError as error:
                problems += error.problems
        raise_errors(list(dict.fromkeys(problems)))

    def variant(self, part: str) -> str | None:
        """The weight variant in use: the one asked for where the part has it."""
        name = self.model.variant
        return name if name and any(f".{name}" in path.name for path in self.files(part)) else None

    def files(self, part: str) -> list[Path]:
        """The part's safetensors files, in order, on this disk."""
        if part not in self._files:
            self._files[part] = self._find_files(part)
        return self._files[part]

    def _find_files(self, part: str) -> list[Path]:
        folder, stem = self.folder(part), KINDS[part].stem
        place, _ = self.origin(part)
        _, within = self._folders[part]
        for variant in dict.fromkeys((self.model.variant, None)):
            dot, index = (f".{variant}", f"index.{variant}") if variant else ("", "index")
            table = folder / f"{stem}.safetensors.{index}.json"
            single = f"{stem}{dot}.safetensors"
            names = [single]
            if table.is_file():
                names = sorted(set(json.loads(table.read_text("utf-8"))["weight_map"].values()))
            place.fetch(str(Path(within, name)) for name in names)
            missing = [name for name in names if not (folder / name).is_file()]
            if not missing:
                return [folder / name for name in names]
            if table.is_file():
                raise ConfigError(
                    f"{folder}: {len(missing)} of {len(names)} weight files are missing",
                    fix="copy or download them again",
                    details=missing[:8],
                )
        raise ConfigError(
            f"{folder} has no {stem}.safetensors and no index of shards",
            fix="give a model whose weights are safetensors files",
            details=[f"{path.name} is not used: {PICKLE}" for path in sorted(folder.glob("*.bin"))],
        )

    @cached_property
    def text_length(self) -> int:
        """T5 tokens a caption, padded and cut."""
        length = self.model.tokenizer_max_length or self.flavour.text_length
        return length or min(LONGEST, int(self.config("tokenizer_2").get("model_max_length", LONGEST)))

    # Fingerprints name the caches: everything that changes an embedding is in them.

    def named_by(self, part: str) -> list[Path]:
        """The files whose content names a part: its small files and its weights."""
        folder, kind = self.folder(part), KINDS[part]
        names = [folder / name for name in kind.configs] if kind.stem else sorted(folder.iterdir())
        return [path for path in names if path.is_file()] + (self.files(part) if kind.stem else [])

    def fingerprint(self, part: str) -> str:
        """Names the content of a part."""
        paths = self.named_by(part)
        names = digests(paths, remember=not self.offline)
        return combine(part, *(f"{path.name} {name}" for path, name in zip(paths, names, strict=True)))

    def vae_fingerprint(self, dtype: str, tiling: bool) -> str:
        return combine("vae/1", self.fingerprint("vae"), dtype, tiling)

    def text_fingerprint(self, dtype: str, kinds: Sequence[str] = ()) -> str:
        """kinds: of quantised weights, for each of ENCODERS; empty where they are not quantised."""
        parts = [self.fingerprint(part) for part in TEXT_PARTS]
        packed = [f"{part} {kind}" for part, kind in zip(ENCODERS, kinds, strict=False) if kind]
        return combine("text/1", *parts, self.text_length, self.model.t5_padding, dtype, *packed)

    def denoiser_fingerprint(self, dtype: str, kind: str = "") -> str:
        """kind: of quantised weights."""
        return combine("transformer/1", self.fingerprint("transformer"), dtype, *([kind] if kind else []))
