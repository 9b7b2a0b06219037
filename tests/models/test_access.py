"""Whether a repository may be read, asked of a hub that is a small server here."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from simpletuner.models import access
from simpletuner.models.places import Place


class Hub(BaseHTTPRequestHandler):
    """Answers HEAD of owner/<number>/... with that status, and notes what it was asked."""

    asked: list[tuple[str, str | None]] = []

    def do_HEAD(self):  # noqa: N802 - the library's name
        Hub.asked.append((self.path, self.headers.get("Authorization")))
        status = int(self.path.split("/")[2])
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere/200/x")
        self.end_headers()

    do_GET = do_HEAD  # older Pythons follow a redirection with GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Hub.asked.clear()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (200, "granted"),
        (401, "refused"),
        (403, "refused"),
        (404, "refused"),
        (500, "not checked"),
        (429, "not checked"),
    ],
)
def test_the_status_decides(hub, status, answer):
    assert access.ask(Place(f"owner/{status}", "model_flavour")) == answer
    assert Hub.asked == [(f"/owner/{status}/resolve/main/model_index.json", "Bearer hf_test")]


def test_the_login_goes_nowhere_else(hub):
    assert access.ask(Place("owner/302", "model_flavour", revision="v1")) == "granted"
    assert Hub.asked == [("/owner/302/resolve/v1/model_index.json", "Bearer hf_test"), ("/elsewhere/200/x", None)]


def test_offline_and_folders_ask_nobody(hub, monkeypatch, tmp_path):
    assert access.ask(Place(str(tmp_path), "model_flavour")) == "not checked"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert access.ask(Place("owner/200", "model_flavour")) == "not checked"
    assert Hub.asked == []


def test_a_hub_that_is_down_is_no_answer(hub):
    hub.shutdown()
    hub.server_close()
    assert access.ask(Place("owner/200", "model_flavour"), seconds=1) == "not checked"
