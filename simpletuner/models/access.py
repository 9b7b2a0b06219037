"""Whether this login may read a repository of the hub: one short question, and no answer is an answer."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from simpletuner.models import Flavour
from simpletuner.models.places import Place, endpoint

Answer = Literal["granted", "refused", "not checked"]
SECONDS = 3.0
REFUSALS = (401, 403, 404)  # a private repository is not found by those who may not see it
FILE = "model_index.json"
NO_ANSWER = 0


class Reply(NamedTuple):
    """HTTP status, or NO_ANSWER with what went wrong."""

    status: int
    reason: str


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a renamed repository, but not to another host: nothing is sent to any but the configured hub."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str):  # noqa: ANN201 - urllib's own type
        if urlsplit(newurl).netloc == urlsplit(req.full_url).netloc:
            return super().redirect_request(req, fp, code, msg, headers, newurl)
        return None


def gated(flavour: Flavour, place: Place) -> bool:
    """Whether the flavour's terms guard the model at `place`; another model has terms of its own."""
    return flavour.gated and place.name == flavour.repository


def offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def head(path: str, seconds: float = SECONDS, token: str | None = None) -> Reply:
    """The hub's answer to a request for the header of a page."""
    try:
        request = urllib.request.Request(f"{endpoint()}/{path}", method="HEAD")
        if token:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.build_opener(_SameHost).open(request, timeout=seconds) as answer:
            return Reply(answer.status, "")
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, str(error.reason))
    except (OSError, ValueError) as error:  # URLError is an OSError; ValueError: HF_ENDPOINT is no address
        return Reply(NO_ANSWER, str(getattr(error, "reason", error)))


def reply(place: Place, seconds: float = SECONDS) -> Reply:
    """The hub's answer to a request for a file that only those may read who may read the weights."""
    from huggingface_hub import get_token

    return head(f"{place.name}/resolve/{place.revision or 'main'}/{FILE}", seconds, get_token())


def ask(place: Place, seconds: float = SECONDS) -> Answer:
    """Of the configured hub only. Offline, or if it does not answer in time: "not checked"."""
    if place.local or offline():
        return "not checked"
    status = reply(place, seconds).status
    if status in REFUSALS:
        return "refused"
    return "granted" if 200 <= status < 400 else "not checked"
