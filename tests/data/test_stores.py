"""The places for bytes: the same checks on each store, and on each source."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
from bucket import KEY_ID, SECRET

from simpletuner.data.stores.local import LocalSource, LocalStore, natural
from simpletuner.data.stores.memory import MemoryStore
from simpletuner.data.stores.s3 import Bucket, S3Source
from simpletuner.errors import DiskError
from simpletuner.protocols import Source

FILES = {
    "img10.png": b"0123456789", "img2.png": b"two", "a/9.txt": b"nine", "a/10.txt": b"ten",
    "a/b/c d+é %41&.png": b"odd", "IMG1.png": b"one", "empty.txt": b"",
}  # fmt: skip


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


class Filled(NamedTuple):
    """A source with the files of FILES, and how somebody else changes them."""

    source: Source
    put: Callable[[str, bytes], None]
    delete: Callable[[str], None]


@pytest.fixture(params=["local", "memory", "s3", "s3 folder"])
def filled(request, tmp_path):
    if request.param == "memory":
        store = MemoryStore(FILES)
        return Filled(store, store.write, store.delete)
    if request.param == "local":

        def put(path: str, data: bytes) -> None:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(data)

        source, delete = LocalSource(tmp_path), lambda path: (tmp_path / path).unlink()
    else:
        s3 = request.getfixturevalue("s3")
        name, folder = s3.bucket(), "deep/in" if request.param == "s3 folder" else ""
        source = S3Source(Bucket(name, folder, "us-east-1", s3.url, KEY_ID, SECRET))
        before = folder and folder + "/"

        def put(path: str, data: bytes) -> None:
            s3.put(name, before + path, data)

        def delete(path: str) -> None:
            s3.client.delete_object(Bucket=name, Key=before + path)

    for path, data in FILES.items():
        put(path, data)
    return Filled(source, put, delete)


def test_a_source_lists_every_file_in_natural_order_with_its_size(filled):
    found = [(i.path, i.num_bytes) for i in filled.source.list()]
    assert found == [(path, len(FILES[path])) for path in sorted(FILES, key=natural)]


def test_a_source_reads_what_it_lists(filled):
    assert {i.path: filled.source.read(i.path) for i in filled.source.list()} == FILES


@pytest.mark.parametrize(
    ("start", "length", "found"),
    [
        (0, 4, b"0123"),
        (3, 4, b"3456"),
        (3, None, b"3456789"),
        (8, 9, b"89"),
        (10, 5, b""),
        (99, None, b""),
        (2, 0, b""),
    ],  # fmt: skip
)
def test_a_source_reads_ranges_that_may_reach_past_the_end(filled, start, length, found):
    assert filled.source.read("img10.png", start, length) == found


def test_the_first_bytes_of_an_empty_file_are_none(filled):
    assert filled.source.read("empty.txt", 0, 65536) == b"" == filled.source.read("empty.txt")


def test_a_file_that_is_not_there_is_not_found(filled):
    with pytest.raises(FileNotFoundError):
        filled.source.read("no such.png")


def test_stamps_stay_while_files_do(filled):
    first = list(filled.source.list())
    assert list(filled.source.list()) == first and all(item.stamp for item in first)


def test_a_changed_file_has_another_stamp_and_the_others_keep_theirs(filled):
    before = {i.path: i.stamp for i in filled.source.list()}
    filled.put("img2.png", b"TWO")
    after = {i.path: i.stamp for i in filled.source.list()}
    assert {path for path in before if before[path] != after[path]} == {"img2.png"}
    assert filled.source.read("img2.png") == b"TWO"


def test_files_come_and_go(filled):
    filled.put("b/new.png", b"new")
    filled.delete("img2.png")
    assert {i.path for i in filled.source.list()} == {*FILES, "b/new.png"} - {"img2.png"}
    with pytest.raises(FileNotFoundError):
        filled.source.read("img2.png")


def test_stamps_begin_with_the_size(filled):
    """What is read at once is bounded by it."""
    assert all(i.stamp.split("-")[0] == str(i.num_bytes) for i in filled.source.list())


def test_a_source_is_read_by_many_threads_at_once(filled):
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(filled.source.read, [*FILES] * 5)) == [*FILES.values()] * 5


@pytest.mark.parametrize("kind", [LocalSource, S3Source])
def test_a_source_has_no_verb_that_writes(kind):
    assert not {"write", "delete", "exists"} & set(dir(kind))
