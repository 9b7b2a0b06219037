"""Where the pictures of a dataset lie: the keys of each `type`, what may be wrong with them, and what reads there.

Another type is another entry of `PLACES`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from simpletuner import examples
from simpletuner.data.ahead import threads
from simpletuner.data.options import BUCKET_KEYS, SECRETS, ImageEntry
from simpletuner.data.stores.local import LocalSource
from simpletuner.data.stores.s3 import BOTO3, Bucket, S3Source
from simpletuner.kernels.packages import Package
from simpletuner.protocols import Source
from simpletuner.retired import is_off
from simpletuner.schema import Raw, is_unset

BUCKET_NAME = re.compile(r"[a-zA-Z0-9.\-_]{1,255}|arn:.+")  # as botocore has it


class Place(Protocol):
    """A place of pictures. Its text names it to people, and holds no credentials."""

    @property
    def folder(self) -> Path | None: ...  # on this machine, where nothing may be written
    @property
    def package(self) -> Package | None: ...  # that reading there needs
    def source(self) -> Source: ...  # may raise what S3Source does
    def readers(self, max_workers: int) -> int: ...  # threads that are worth it while files are only read


@dataclass(frozen=True)
class Folder:
    """A folder on this machine."""

    path: Path
    package: Package | None = None

    @property
    def folder(self) -> Path:
        return self.path

    def source(self) -> Source:
        return LocalSource(self.path)

    def readers(self, max_workers: int) -> int:
        return threads(max_workers)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Remote:
    """A folder of a bucket."""

    bucket: Bucket
    package: Package | None = BOTO3
    folder: None = None

    def source(self) -> Source:
        return S3Source(self.bucket)

    def readers(self, max_workers: int) -> int:
        """One for each connection: they wait for answers, and need no core for that."""
        return self.bucket.connections

    def __str__(self) -> str:
        return str(self.bucket)


class Mistake(NamedTuple):
    """What is wrong with one key. It never shows a value that could hold a credential."""

    key: str
    message: str
    fix: str


class Kind(NamedTuple):
    """What one `type` means."""

    required: str
    fix: str  # for those who left it out
    keys: frozenset[str]  # that no other type takes
    place: Callable[[ImageEntry], Place]
    mistakes: Callable[[ImageEntry], Iterator[Mistake]]


def folder(text: str) -> Path:
    """The folder that a text means: ~ is the home, config/examples/ the packaged examples, the rest as it is."""
    return Path(os.path.expanduser(examples.resolve(text)))


def _local(entry: ImageEntry) -> Folder:
    return Folder(folder(str(entry.instance_data_dir)))


def _local_mistakes(entry: ImageEntry) -> Iterator[Mistake]:
    root = _local(entry).path
    if os.path.exists(root) and not os.path.isdir(root):
        message = f"instance_data_dir: {root} is a file"
        yield Mistake("instance_data_dir", message, "name the folder that holds the images")


def _aws(entry: ImageEntry) -> Remote:
    return Remote(
        Bucket(
            name=str(entry.aws_bucket_name),
            prefix=entry.aws_data_prefix,
            region=entry.aws_region_name,
            endpoint=entry.aws_endpoint_url,
            key_id=entry.aws_access_key_id,
            secret=entry.aws_secret_access_key,
            connections=entry.aws_max_pool_connections,
        )
    )


def _aws_mistakes(entry: ImageEntry) -> Iterator[Mistake]:
    name, url = str(entry.aws_bucket_name), entry.aws_endpoint_url
    if not BUCKET_NAME.fullmatch(name):
        fix = "give its bare name; what follows it goes into aws_data_prefix"
        yield Mistake("aws_bucket_name", f"aws_bucket_name: {name!r} is no name of a bucket", fix)
    if url is not None and not _plain_url(url):
        message = "aws_endpoint_url: expected https://HOST or https://HOST:PORT, without user, query or fragment"
        yield Mistake("aws_endpoint_url", message, "credentials go into the environment, or into aws_access_key_id")
    given = [key for key in SECRETS if getattr(entry, key)]
    if len(given) == 1:
        (missing,) = set(SECRETS) - set(given)
        yield Mistake(given[0], f"{given[0]} needs {missing}", "give both, or none: the environment is asked then")


def _plain_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    return named and not (parts.username or parts.password or parts.query or parts.fragment)


PLACES: dict[str, Kind] = {
    "local": Kind(
        "instance_data_dir", "name the folder of the images", frozenset(("instance_data_dir",)), _local, _local_mistakes
    ),
    "aws": Kind("aws_bucket_name", "name the bucket of the images", frozenset(BUCKET_KEYS), _aws, _aws_mistakes),
}


def misplaced(type_: str, raw: dict[str, Raw]) -> Iterator[Mistake]:
    """What is wrong with the keys of an entry of that type, as written; those that cannot be read leave `raw`."""
    kind = PLACES.get(type_)
    if kind is None:
        return
    if kind.required not in raw or is_unset(kind.required, raw[kind.required].value):
        yield Mistake(kind.required, f"{kind.required} is required", kind.fix)
    for other, theirs in PLACES.items():
        for key in sorted(theirs.keys & raw.keys()) if theirs is not kind else ():
            value = raw.pop(key).value
            if not is_off(value) and str(value) != str(ImageEntry.model_fields[key].default):
                message = f'{key} belongs to type "{other}", and this dataset is of type "{type_}"'
                yield Mistake(key, message, f"remove {key}, or choose the other type")
    for key in SECRETS:
        if key in raw and not isinstance(raw[key].value, str | None):  # whose own message would show it
            del raw[key]
            yield Mistake(key, f"{key}: expected a text", "write it in quotes")
