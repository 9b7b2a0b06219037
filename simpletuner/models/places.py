"""Where a model lies: a folder on disk, or a repository on the hub of which only the needed files are fetched."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from simpletuner.errors import AccessError, ConfigError, RemoteError, first_line

PUBLIC = "https://huggingface.co"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PICKLE = "it is a pickle, which can run any code when it is opened"
REFUSED = {
    ".ckpt": PICKLE,
    ".pt": PICKLE,
    ".pth": PICKLE,
    ".bin": PICKLE,
    ".gguf": "GGUF files cannot be read yet",
    ".safetensors": "single-file models cannot be read yet",
}


def endpoint() -> str:
    """The address of the hub, or of the mirror in use."""
    return (os.environ.get("HF_ENDPOINT") or PUBLIC).rstrip("/")


def hub_cache(cache_dir: str | None) -> Path:
    """The folder in which the hub's library keeps what it downloads."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expanduser(cache_dir or os.environ.get("HF_HUB_CACHE") or Path(home, "hub")))


def on_disk(place: Place) -> Path | None:
    """The folder of the model if it is here, as a folder or a snapshot in the hub's cache; asks nobody."""
    if place.local:
        return Path(os.path.expanduser(place.name))
    home = hub_cache(place.cache_dir) / f"models--{place.name.replace('/', '--')}"
    wanted = place.revision or "main"
    reference = home / "refs" / wanted
    commit = reference.read_text("utf-8").strip() if reference.is_file() else wanted
    snapshot = home / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


@dataclass(frozen=True)
class Place:
    """One model folder or repository, and the option that named it."""

    name: str
    option: str
    revision: str | None = None
    cache_dir: str | None = None
    offline: bool = False  # what is not on this disk is not there

    def __post_init__(self) -> None:
        reason = REFUSED.get(Path(self.name).suffix.lower())
        if reason and not Path(os.path.expanduser(self.name)).is_dir():
            raise ConfigError(
                f"{self.option}: {self.name}: {reason}", fix="give a folder or hub repository in the diffusers layout"
            )
        if not self.local and not HUB_ID.fullmatch(self.name):
            raise ConfigError(
                f"{self.option}: there is no folder {self.name}",
                fix="correct the path, or give a hub name such as owner/name",
            )

    @property
    def local(self) -> bool:
        return Path(os.path.expanduser(self.name)).is_dir()

    @property
    def page(self) -> str:
        """Its address on the hub."""
        return f"{endpoint()}/{self.name}"

    @property
    def terms(self) -> str:
        """What gives access where it is gated."""
        return f"accept the terms at {self.page}, then: hf auth login"

    def fetch(self, patterns: Iterable[str]) -> Path:
        """The folder below which the files that match `patterns` lie, as far as they exist."""
        if self.local:
            return Path(os.path.expanduser(self.name))
        if self.offline:
            if (root := on_disk(self)) is None:
                raise ConfigError(f"{self.name} is not on this disk", fix="the start of a run downloads it")
            return root
        from huggingface_hub import snapshot_download

        try:
            return Path(
                snapshot_download(
                    self.name, revision=self.revision, cache_dir=self.cache_dir, allow_patterns=sorted(patterns)
                )
            )
        except Exception as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> Exception:
        """The hub's error in the user's words; an error that is not the hub's comes back as it is."""
        from huggingface_hub import errors as hub

        page = self.page
        if isinstance(error, hub.GatedRepoError):
            return AccessError(
                f"{self.name} is gated and this machine has no access to it",
                fix=self.terms,
            )
        if isinstance(error, hub.RevisionNotFoundError):
            return ConfigError(f"{self.name} has no revision {self.revision}", fix=f"see {page}/tree/main")
        if isinstance(error, hub.RepositoryNotFoundError):
            return AccessError(
                f"{self.option}: {self.name} is neither a folder here nor a repository that this login may read",
                fix=f"check the name at {page}; for a private or gated one run: hf auth login",
            )
        if isinstance(error, (hub.LocalEntryNotFoundError, hub.HfHubHTTPError, ConnectionError)):
            return RemoteError(
                f"{self.name} could not be downloaded from {endpoint()}: {first_line(error)}",
                fix="check the connection, set HF_ENDPOINT to a mirror, or give a local folder",
            )
        return error
