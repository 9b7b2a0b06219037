"""Configurations from values, in a folder of their own."""

from __future__ import annotations

import pytest

from simpletuner.config import load
from simpletuner.rules import hub, validation

NOT_YET = "not yet available"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Loads values beside a dataset file that exists; only that a feature is not there yet may be wrong with them."""
    monkeypatch.chdir(tmp_path)
    for name in (*hub.TOKENS, "HF_TOKEN_PATH", validation.SERVED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "config").mkdir()
    (tmp_path / "config/multidatabackend.json").write_text("[]")

    def load_values(values):
        loaded, problems = load(None, {"max_train_steps": 100, **values}, {})
        wrong = [p for p in problems if p.severity == "error" and NOT_YET not in p.message]
        assert not wrong, wrong
        return loaded

    return load_values
