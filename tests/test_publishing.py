"""The result of a run is in its place whole or not at all, and takes nothing from its owner."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from simpletuner import publishing


@pytest.fixture
def sources(tmp_path):
    """A run's own folder of weights, and a base model's file."""
    own, base = tmp_path / "checkpoint/transformer", tmp_path / "base/vae"
    own.mkdir(parents=True)
    base.mkdir(parents=True)
    (own / "weights").write_bytes(b"trained")
    (base / "config.json").write_bytes(b"base")
    return own, base


def put(sources, target):
    own, base = sources
    files = {"vae/config.json": base / "config.json", "model_index.json": "{}\n"}
    return publishing.folder(target, {"transformer/weights": own / "weights"}, files)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WHOLE = {"transformer/weights": b"trained", "vae/config.json": b"base", "model_index.json": b"{}\n"}


def test_a_folder_links_what_is_the_runs_own_and_copies_the_rest(sources, tmp_path):
    assert put(sources, tmp_path / "pipeline") is None
    assert content(tmp_path / "pipeline") == WHOLE
    assert os.path.samefile(tmp_path / "pipeline/transformer/weights", sources[0] / "weights")
    assert not os.path.samefile(tmp_path / "pipeline/vae/config.json", sources[1] / "config.json")


def test_without_links_all_is_copied(sources, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    put(sources, tmp_path / "pipeline")
    assert content(tmp_path / "pipeline") == WHOLE
    assert not os.path.samefile(tmp_path / "pipeline/transformer/weights", sources[0] / "weights")


def test_what_was_there_moves_aside_each_time_to_a_place_of_its_own(sources, tmp_path):
    target = tmp_path / "pipeline"
    target.mkdir()
    (target / "mine.txt").write_text("the user's")
    assert put(sources, target) == tmp_path / "earlier-1"
    assert put(sources, target) == tmp_path / "earlier-2"
    assert content(tmp_path / "earlier-1/pipeline") == {"mine.txt": b"the user's"}
    assert content(tmp_path / "earlier-2/pipeline") == content(target) == WHOLE


@pytest.mark.parametrize("call", ["copyfile", "fsync", "rename"])
def test_a_failure_leaves_what_was_there_and_the_next_try_sweeps_up(sources, tmp_path, monkeypatch, call):
    target = tmp_path / "pipeline"
    put(sources, target)
    (target / "old").touch()

    def broken(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr({"copyfile": "shutil.copyfile"}.get(call, f"os.{call}"), broken)
    with pytest.raises(OSError, match="No space"):
        put(sources, target)
    assert content(target) == WHOLE | {"old": b""}
    monkeypatch.undo()
    put(sources, target)
    assert content(target) == WHOLE and not list(tmp_path.glob(".pipeline*"))


class Killed(BaseException):
    """Stands for a SIGKILL: nothing here catches it, and nothing cleans up."""


def test_an_end_at_any_moment_leaves_a_whole_folder_and_loses_none(sources, tmp_path, monkeypatch):
    """Before each call that changes the disk, in turn. The one before is in its place or moved aside, always whole."""
    old, states = {"mine.txt": b"the user's"}, set()
    for n in range(1, 1000):
        output = tmp_path / f"out-{n}"
        (output / "pipeline").mkdir(parents=True)
        (output / "pipeline/mine.txt").write_bytes(old["mine.txt"])
        calls = 0

        def counted(call):
            def struck(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == n:  # noqa: B023 - used within this turn
                    raise Killed
                return call(*args, **kwargs)

            return struck

        with monkeypatch.context() as patch:
            for name in ("fsync", "rename", "link", "mkdir"):
                patch.setattr(f"os.{name}", counted(getattr(os, name)))
            patch.setattr("shutil.copyfile", counted(shutil.copyfile))
            try:
                put(sources, output / "pipeline")
                break
            except Killed:
                pass
        moved = content(output / "earlier-1/pipeline")
        there = content(output / "pipeline")
        assert (there, moved) in ((old, {}), ({}, old), (WHOLE, old))
        states.add((bool(there), bool(moved)))
        put(sources, output / "pipeline")
        assert content(output / "pipeline") == WHOLE and not list(output.glob(".pipeline*"))
    assert n > 12 and states == {(True, False), (False, True), (True, True)}


def test_a_file_replaces_the_one_before_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "result").write_bytes(b"old")
    (tmp_path / ".result.tmp-dead").write_bytes(b"torn")

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="Input/output"):
        publishing.file(tmp_path / "new", tmp_path / "result")
    assert (tmp_path / "result").read_bytes() == b"old"
    monkeypatch.undo()
    publishing.file(tmp_path / "new", tmp_path / "result")
    assert (tmp_path / "result").read_bytes() == b"new" and not list(tmp_path.glob(".result*"))


def test_equal_is_about_the_bytes_of_every_file(sources, tmp_path):
    own, _ = sources
    put(sources, tmp_path / "pipeline")
    there = tmp_path / "pipeline/transformer"
    assert publishing.equal(own, there) and publishing.equal(own / "weights", there / "weights")
    (there / "weights").unlink()
    assert not publishing.equal(own, there)
    (there / "weights").write_bytes(b"trainex")
    assert not publishing.equal(own, there)
    (there / "weights").write_bytes(b"trained")
    assert publishing.equal(own, there)
    assert not publishing.equal(own, tmp_path / "nowhere") and not publishing.equal(tmp_path / "nowhere", own)
    (tmp_path / "empty").mkdir()
    assert not publishing.equal(tmp_path / "empty", there)
