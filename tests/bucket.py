"""A real S3 server for tests: moto's, in a process of its own, behind a proxy that can go wrong on demand."""

from __future__ import annotations

import http.client
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import boto3

KEY_ID, SECRET = "AKIDOFTHETESTS", "s3cr3t/of+the=tests"


class Asked(NamedTuple):
    """One request that the proxy has seen."""

    method: str
    path: str  # /bucket/key, unquoted
    query: dict[str, list[str]]
    range: str | None

    @property
    def lists(self) -> bool:
        return "list-type" in self.query


class Proxy(ThreadingHTTPServer):
    """Hands requests on. `fault(asked, number)` may name what happens to one instead: a word of `_Handler`."""

    daemon_threads = True

    def __init__(self, port: int):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.asked = port, list[Asked]()
        self.fault: Callable[[Asked, int], str] = lambda asked, number: ""
        self.per_page: int | None = None  # names that the server gives at once, whatever is asked for
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        asked = Asked(self.command, unquote(parts.path), parse_qs(parts.query), self.headers.get("Range"))
        self.server.asked.append(asked)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault(asked, len(self.server.asked))
        if fault == "reset":
            self.close_connection = True
        elif fault == "503":
            self._answer(503, {"Content-Type": "application/xml"}, b"<Error><Code>SlowDown</Code></Error>")
        elif fault == "echo":
            said = f"<Message>who are you, {self.headers['Authorization']}</Message>"
            xml = f"<Error><Code>AccessDenied</Code>{said}</Error>"
            self._answer(403, {"Content-Type": "application/xml"}, xml.encode())
        else:
            self._answer(*self._upstream(asked, body), cut=fault == "short")

    do_GET = do_PUT = do_DELETE = do_HEAD = do_POST = handle_any  # noqa: N815 - names of the library

    def _upstream(self, asked: Asked, body: bytes) -> tuple[int, dict[str, str], bytes]:
        path = self.path
        if asked.lists and self.server.per_page:
            path = path.replace("max-keys=1000", f"max-keys={self.server.per_page}")
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream)
        connection.request(self.command, path, body, dict(self.headers))
        response = connection.getresponse()
        data, headers = response.read(), dict(response.getheaders())
        connection.close()
        return response.status, headers, data

    def _answer(self, status: int, headers: dict[str, str], data: bytes, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


class S3:
    """The server and its proxy. Buckets are made through the former, so that the latter counts only what is tested."""

    numbers = itertools.count()

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stderr
        line = next(line for line in self.process.stderr if "Running on" in line)
        self.port = int(line.rpartition(":")[2])
        self.drain = threading.Thread(target=self.process.stderr.read)  # a full pipe would stop it
        self.drain.start()
        self.proxy = Proxy(self.port)
        self.url = f"http://127.0.0.1:{self.proxy.server_port}"
        self.client = boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{self.port}", region_name="us-east-1",
            aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET,
        )  # fmt: skip

    def bucket(self) -> str:
        """A new and empty one, and a proxy that behaves."""
        name = f"bucket-{next(self.numbers)}"
        self.client.create_bucket(Bucket=name)
        self.proxy.asked.clear()
        self.proxy.fault, self.proxy.per_page = lambda asked, number: "", None
        return name

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def upload(self, bucket: str, folder: Path, prefix: str = "") -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(bucket, prefix + path.relative_to(folder).as_posix(), path.read_bytes())

    def objects(self, bucket: str) -> dict[str, tuple[str, str]]:
        """Key -> (etag, when it was changed): equal before and after where nothing was written."""
        found = self.client.list_objects_v2(Bucket=bucket).get("Contents", [])
        return {item["Key"]: (item["ETag"], str(item["LastModified"])) for item in found}

    def check_logins(self, on: bool) -> None:
        """Whether the server refuses those whom it does not know."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        body = "0" if on else "inf"
        connection.request("POST", "/moto-api/reset-auth", body, {"Content-Type": "text/plain"})
        assert connection.getresponse().status == 200
        connection.close()

    def entry(self, bucket: str, **keys: Any) -> dict[str, Any]:
        """The keys of a dataset entry that read this bucket through the proxy."""
        login = {"aws_access_key_id": KEY_ID, "aws_secret_access_key": SECRET, "aws_region_name": "us-east-1"}
        return {"type": "aws", "aws_bucket_name": bucket, "aws_endpoint_url": self.url, **login, **keys}

    def close(self) -> None:
        self.client.close()
        self.proxy.shutdown()
        self.proxy.server_close()
        self.process.terminate()
        self.process.wait(10)
        self.drain.join()
        assert self.process.stderr
        self.process.stderr.close()
