"""Whole runs on pictures in a bucket: what they leave, what a second one reads, and how they end without it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import program
import pytest
import small
from bucket import KEY_ID, SECRET

CREDENTIALS = (KEY_ID, SECRET)


@pytest.fixture
def bucket(s3, pictures):
    name = s3.bucket()
    s3.upload(name, pictures, "many/sizes/")
    return name


@pytest.fixture
def asked(config, s3, bucket, tmp_path, monkeypatch):
    """A configuration of two steps on the bucket; `asked(**keys)` changes its dataset entry."""
    state = tmp_path / "state"
    monkeypatch.setenv("SIMPLETUNER_STATE_DIR", str(state))

    def write(**keys):
        path = config(max_train_steps=2, checkpoint_step_interval=2)
        datasets = path.parent / "datasets.json"
        entry = s3.entry(bucket, aws_data_prefix="many/sizes", caption_strategy="textfile", resolution=64)
        datasets.write_text(json.dumps([{"id": "pictures"} | entry | keys]))
        return path

    return write


def leaks(folder: Path, *texts: str, but: tuple[str, ...] = ("datasets.json",)) -> list[str]:
    """Where a credential shows: files below the folder, but for the one that was given, and texts."""
    files = (path for path in folder.rglob("*") if path.is_file() and (path.parent, path.name) != (folder, *but))
    found = [str(path) for path in files if any(word.encode() in path.read_bytes() for word in CREDENTIALS)]
    return found + [text for text in texts if any(word in text for word in CREDENTIALS)]


def test_a_bucket_trains_and_a_second_run_reads_none_of_it_anew(asked, s3, bucket, tmp_path):
    path, before = asked(), s3.objects(bucket)
    first = small.train(path)
    assert first.progress.step == 2 and (first.output_dir / small.RESULT).is_file()
    assert sum(not request.lists for request in s3.proxy.asked) > 3 * 7  # headers, captions, whole pictures
    s3.proxy.asked.clear()
    again = json.loads(path.read_text()) | {"output_dir": str(tmp_path / "again")}
    path.write_text(json.dumps(again))
    second = small.train(path)
    assert second.progress.step == 2 and [request.lists for request in s3.proxy.asked] == [True, True]
    assert small.differences(small.state(first.output_dir, 2), small.state(second.output_dir, 2)) == []
    assert s3.objects(bucket) == before


def test_a_bucket_trains_as_the_same_folder_does(asked, config, pictures):
    remote = small.train(asked())
    local = small.train(config(output="local", max_train_steps=2, checkpoint_step_interval=2))
    assert small.differences(small.state(remote.output_dir, 2), small.state(local.output_dir, 2)) == []


def test_credentials_are_in_nothing_that_is_written_or_told(asked, tmp_path):
    path = str(asked())
    page = str(tmp_path / "page.html")
    told = [program.start("train", "--config", path), program.run("plan", "--config", path)]
    told += [program.run("plan", "--json", "--config", path), program.run("validate", "--config", path)]
    told += [program.run("dataset", "report", "--json", "--html", page, "--config", path)]
    told += [program.run("report", str(tmp_path / "out")), program.run("env", "--config", path)]
    texts = [done.stdout + done.stderr for done in told]
    assert [done.returncode for done in told] == [0] * len(told), "\n".join(texts)
    assert (tmp_path / "out" / "events.jsonl").is_file() and (tmp_path / "out" / "config.resolved.json").is_file()
    assert "s3://bucket-" in texts[4] and "s3://bucket-" in Path(page).read_text("utf-8")
    assert leaks(tmp_path, *texts) == []
    assert leaks(tmp_path, but=("",)) == [str(tmp_path / "datasets.json")]  # where they were given, and found


@pytest.mark.parametrize(
    ("keys", "code", "part"),
    [
        ({"aws_bucket_name": "no-such-bucket"}, 3, "there is no bucket no-such-bucket"),
        ({"aws_endpoint_url": "http://127.0.0.1:9"}, 8, "http://127.0.0.1:9 cannot be reached: "),
        ({}, 4, "refuses these credentials"),
    ],
)
def test_a_run_without_its_bucket_ends_soon_with_one_error(asked, s3, tmp_path, keys, code, part):
    path, begun = str(asked(**keys)), time.monotonic()
    s3.proxy.fault = lambda request, number: "echo" if code == 4 else ""  # the traceback must not have it either
    done = program.start("train", "--config", path)
    planned = program.run("plan", "--config", path)
    text = done.stderr + done.stdout
    assert done.returncode == code == planned.returncode and text.count(part) == 1 and "fix: " in text, text
    assert part in planned.stderr + planned.stdout and time.monotonic() - begun < 2 * 15
    assert leaks(tmp_path, text, planned.stdout, planned.stderr) == []
