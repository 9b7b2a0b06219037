"""S3Source: the objects of a bucket, on AWS or on any server that speaks its protocol, to list and to read."""

from __future__ import annotations

import errno
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from simpletuner.data.stores.local import natural
from simpletuner.errors import AccessError, ConfigError, DataError, RemoteError, first_line
from simpletuner.kernels.packages import Package
from simpletuner.protocols import Listing

BOTO3 = Package("boto3", "pip install 'simpletuner[s3]'")
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each retry, as data.md section 4 has it
NAMES_PER_PAGE = 1000  # as many as the protocol allows
CONNECT_SECONDS, READ_SECONDS = 5, 30
REACH_SECONDS = 8.0  # for the first answer: resolving a name and trying its addresses have no bound of their own

PASSING = frozenset(("SlowDown", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException"))  # codes
PASSING_STATUS = frozenset((429, 500, 502, 503, 504))
ELSEWHERE = frozenset(("PermanentRedirect", "AuthorizationHeaderMalformed"))  # the bucket is in another region
ARCHIVED, NO_BUCKET, PAST_THE_END, SKEWED = "InvalidObjectState", "NoSuchBucket", "InvalidRange", "RequestTimeTooSkewed"

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Bucket:
    """Which objects, where, and who asks for them. The text of it holds no credentials."""

    name: str
    prefix: str = ""  # a folder in the bucket: "cats" is "cats/...", and not "cats2/..."
    region: str | None = None
    endpoint: str | None = None  # of another provider than AWS
    key_id: str | None = field(default=None, repr=False)  # unset: environment, profile or role, as boto3 finds them
    secret: str | None = field(default=None, repr=False)
    connections: int = 128

    @property
    def folder(self) -> str:
        """What the keys begin with."""
        path = self.prefix.strip("/")
        return path + "/" if path else ""

    def __str__(self) -> str:
        return f"s3://{self.name}/{self.folder}"


class S3Source:
    """The objects of a bucket. A missing object is a FileNotFoundError; whatever else fails names the key.

    RemoteError (exit 8) for a store that cannot be reached or fails again and again, AccessError (exit 4) for
    credentials that are missing or refused, DataError for a bucket that is not there.
    """

    def __init__(self, bucket: Bucket, pauses: Sequence[float] = PAUSES):
        """pauses: seconds before each retry. Nothing is asked for yet; ConfigError if boto3 is not installed."""
        self.bucket, self.pauses = bucket, pauses
        try:
            import boto3
            from botocore import exceptions, parsers
            from botocore.config import Config
        except ImportError as error:
            raise ConfigError(f"{bucket}: needs boto3, which is not installed", fix=BOTO3.install) from error
        self._told, self._unreachable = exceptions.ClientError, exceptions.ConnectionError
        self._failed = exceptions.BotoCoreError  # the root of what is not an answer
        self._broken = (
            exceptions.HTTPClientError, exceptions.IncompleteReadError, exceptions.FlexibleChecksumError,
            parsers.ResponseParserError,
        )  # fmt: skip
        config = Config(
            max_pool_connections=bucket.connections,
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"total_max_attempts": 1},  # counted here
        )
        try:
            session = boto3.session.Session(bucket.key_id, bucket.secret, region_name=bucket.region)
            self._client: Any = session.client("s3", endpoint_url=bucket.endpoint, config=config)
        except (exceptions.BotoCoreError, ValueError) as error:
            fix = "mend the keys aws_*, or the environment's AWS_*"
            raise ConfigError(f"{bucket}: {self._plain(error)}", fix=fix) from None

    def list(self) -> Iterator[Listing]:
        """All objects below the prefix in natural order, but for those that only stand for a folder."""
        self._reach()
        skip, found, more = len(self.bucket.folder), [], True
        token: str | None = None
        while more:
            page = self._tried(str(self.bucket), lambda token=token: self._page(NAMES_PER_PAGE, token))  # type: ignore[misc]
            for item in page.get("Contents", ()):
                path = item["Key"][skip:]
                if path and not path.endswith("/"):
                    found.append(Listing(path, item["Size"], f"{item['Size']}-{item['ETag'].strip(chr(34))}"))
            token, more = page.get("NextContinuationToken"), page["IsTruncated"]
        yield from sorted(found, key=lambda listing: natural(listing.path))

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        key = self.bucket.folder + path
        wanted = {"Range": f"bytes={start}-{'' if length is None else start + length - 1}"}
        request = {"Bucket": self.bucket.name, "Key": key, **({} if start == 0 and length is None else wanted)}

        def get() -> bytes:
            answer = self._client.get_object(**request)
            with closing(answer["Body"]) as body:
                data = body.read()
            if "Range" not in request or "ContentRange" in answer:
                return data
            return data[start : None if length is None else start + length]  # the server sent the whole object

        try:
            return self._tried(f"s3://{self.bucket.name}/{key}", get)
        except _PastTheEnd:
            return b""

    def _page(self, most: int, token: str | None = None) -> dict[str, Any]:
        more = {"ContinuationToken": token} if token else {}
        return self._client.list_objects_v2(Bucket=self.bucket.name, Prefix=self.bucket.folder, MaxKeys=most, **more)

    def _reach(self) -> None:
        """Asks for one name: of a store that is not there people hear at once, and not after all the retries."""
        answers: queue.Queue[Exception | None] = queue.Queue()

        def ask() -> None:
            try:
                self._page(1)
                answers.put(None)
            except Exception as error:  # noqa: BLE001 - it is raised again on the other thread
                answers.put(error)

        threading.Thread(target=ask, name="s3-reach", daemon=True).start()
        try:
            error = answers.get(timeout=REACH_SECONDS)
        except queue.Empty:
            reason = f"cannot be reached: no answer within {REACH_SECONDS:g} s"
            raise self._unanswered(str(self.bucket), reason) from None
        if isinstance(error, self._unreachable):
            raise self._unanswered(str(self.bucket), f"cannot be reached: {self._plain(error)}") from None
        if error is not None and not self._passes(error):
            raise self._refusal(error, str(self.bucket)) from None

    def _tried(self, what: str, call: Callable[[], Answer]) -> Answer:
        """What the call returns. What may pass is tried again; for all the rest, an error that names `what`."""
        for pause in (*self.pauses, None):
            try:
                return call()
            except (self._told, self._failed, *self._broken) as error:
                if not self._passes(error):
                    raise self._refusal(error, what) from None  # its text is chosen here: theirs may show who asked
                reason = self._plain(error)
            if pause is not None:
                time.sleep(pause)
        raise self._unanswered(what, f"fails, {len(self.pauses) + 1} times: {reason}")

    def _passes(self, error: Exception) -> bool:
        if isinstance(error, self._told):
            code, status = _answer(error)
            return code in PASSING or status in PASSING_STATUS
        return isinstance(error, (self._unreachable, *self._broken))

    def _unanswered(self, what: str, reason: str) -> RemoteError:
        fix = "check the network and aws_endpoint_url, and start again: what is cached stays"
        return RemoteError(f"{what}: {self._client.meta.endpoint_url} {reason}", fix=fix)

    def _refusal(self, error: Exception, what: str) -> Exception:
        """What an answer means that will stay the same."""
        at = self._client.meta.endpoint_url
        if not isinstance(error, self._told):
            if not isinstance(error, self._failed):
                return error
            return AccessError(f"{what}: {self._plain(error)}", fix=self._login_fix())
        code, status = _answer(error)
        if code == PAST_THE_END:
            return _PastTheEnd()
        if code == NO_BUCKET:
            fix = "check aws_bucket_name, and aws_endpoint_url if the provider is not AWS"
            return DataError(f"{what}: there is no bucket {self.bucket.name} at {at}", fix=fix)
        if status == 404:
            return FileNotFoundError(errno.ENOENT, "is gone from the bucket", what)
        if code == ARCHIVED:
            return OSError(errno.EIO, "is archived, and has to be restored before it can be read", what)
        if code in ELSEWHERE or 300 <= status < 400:
            return ConfigError(f"{what}: the bucket is in another region ({self._plain(error)})", fix="aws_region_name")
        if status in (401, 403):
            fix = "set this machine's clock" if code == SKEWED else self._login_fix()
            return AccessError(f"{what}: {at} refuses these credentials: {self._plain(error)}", fix=fix)
        return RemoteError(f"{what}: {at} answers {status}: {self._plain(error)}", fix="ask the provider")

    def _login_fix(self) -> str:
        where = "aws_access_key_id and aws_secret_access_key" if self.bucket.key_id else "AWS_ACCESS_KEY_ID and so on"
        return f"check {where}, and that they may list the bucket (s3:ListBucket) and read it (s3:GetObject)"

    def _plain(self, error: Any) -> str:
        """What the error says, in one line and without the credentials."""
        if isinstance(error, self._told):
            text = f"{_answer(error)[0]}: {error.response['Error'].get('Message', '')}"
        elif isinstance(error, self._unreachable):  # the last clause is the system's reason
            text = str(error.kwargs.get("error") or error).rpartition(": ")[2]
        else:
            text = first_line(error)
        for secret in (self.bucket.secret, self.bucket.key_id):
            text = text.replace(secret, "***") if secret else text
        return text


class _PastTheEnd(Exception):
    """The range begins behind the last byte, or the object is empty."""


def _answer(error: Any) -> tuple[str, int]:
    """(code, HTTP status) of botocore's ClientError."""
    return str(error.response["Error"].get("Code", "")), error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
