"""The places for bytes: the same checks on each store."""

from __future__ import annotations

import os

import pytest

from simpletuner.data.stores.local import LocalSource, LocalStore, natural
from simpletuner.data.stores.memory import MemoryStore
from simpletuner.errors import DiskError


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    return LocalStore(tmp_path / "store", sync_every=2) if request.param == "local" else MemoryStore()


def test_a_store_gives_back_what_was_written(store):
    store.write("a/b.bin", b"one")
    store.write("c.bin", b"123456")
    store.write("a/b.bin", b"two")
    store.sync()
    assert store.read("a/b.bin") == b"two" and store.read("c.bin", 2, 3) == b"345"
    assert {(i.path, i.num_bytes) for i in store.list()} == {("a/b.bin", 3), ("c.bin", 6)}
    assert store.exists("c.bin") and not store.exists("d")
    store.delete("c.bin")
    store.delete("c.bin")
    assert [i.path for i in store.list()] == ["a/b.bin"]
    with pytest.raises(FileNotFoundError):
        store.read("c.bin")


def test_leftovers_of_dead_processes_are_removed_and_never_listed(tmp_path):
    store = LocalStore(tmp_path)
    pid = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(pid, 0)
    (tmp_path / f"x.safetensors.tmp-{pid}-3").write_bytes(b"half")
    (tmp_path / f"y.safetensors.tmp-{os.getpid()}-3").write_bytes(b"half")
    assert list(store.list()) == []
    assert store.clear_leftovers() == 1
    assert [p.name for p in tmp_path.iterdir()] == [f"y.safetensors.tmp-{os.getpid()}-3"]


def test_a_failed_write_leaves_nothing_and_is_a_disk_error(tmp_path):
    (tmp_path / "a").write_text("a file where a folder should be")
    with pytest.raises(DiskError) as found:
        LocalStore(tmp_path).write("a/b", b"x")
    assert found.value.exit_code == 7
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_natural_order_is_for_people():
    names = ["img10", "img2", "IMG1", "b/1", "a/10", "a/9", "1", "img2x", "é"]
    assert sorted(names, key=natural) == ["1", "a/9", "a/10", "b/1", "IMG1", "img2", "img2x", "img10", "é"]


def test_links_are_followed_and_loops_reported(tmp_path):
    (tmp_path / "root/sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x.png").write_bytes(b"x")
    (tmp_path / "root/sub/back").symlink_to(tmp_path / "root")
    (tmp_path / "root/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/dead.png").symlink_to(tmp_path / "nothing")
    source = LocalSource(tmp_path / "root")
    assert [(i.path, i.stamp == "gone") for i in source.list()] == [("dead.png", True), ("linked/x.png", False)]
    assert source.loops == ["sub/back"]


def test_a_source_has_no_verb_that_writes():
    assert not {"write", "delete", "exists"} & set(dir(LocalSource))
