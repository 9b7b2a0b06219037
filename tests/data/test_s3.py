"""Images in a bucket: what the server may do wrong, what it refuses, and what a second look costs."""

from __future__ import annotations

import json
import socket
import threading
import time
import traceback

import pytest
from bucket import KEY_ID, SECRET
from PIL import Image

from simpletuner.data.stores import s3 as store
from simpletuner.data.stores.s3 import PAUSES, Bucket, S3Source
from simpletuner.errors import AccessError, DataError, RemoteError, SimpleTunerError

QUICK = tuple(pause / 500 for pause in PAUSES)
SOON = 15  # seconds within which people hear of a store that is not there


@pytest.fixture
def name(s3):
    name = s3.bucket()
    s3.put(name, "cat.png", b"0123456789" * 1000)
    return name


def source(s3, name, **keys):
    login = {"key_id": KEY_ID, "secret": SECRET, "region": "us-east-1", "endpoint": s3.url}
    return S3Source(Bucket(name, **{**login, **keys}), QUICK)


def failing(kind, times, lists=False):
    """A fault for the first `times` requests that list, or that read."""
    left = [times]

    def fault(asked, number):
        if asked.lists is not lists or asked.query.get("max-keys") == ["1"] or not left[0]:
            return ""
        left[0] -= 1
        return kind

    return fault


@pytest.mark.parametrize("kind", ["503", "reset", "short"])
def test_what_may_pass_is_tried_five_times_more(s3, name, kind):
    s3.proxy.fault = failing(kind, 5)
    assert source(s3, name).read("cat.png", 5, 7) == b"5678901"
    assert len(s3.proxy.asked) == 6 and {asked.range for asked in s3.proxy.asked} == {"bytes=5-11"}


@pytest.mark.parametrize("kind", ["503", "reset", "short"])
def test_after_that_an_error_of_exit_code_8_names_the_key(s3, name, kind):
    s3.proxy.fault = failing(kind, 99)
    with pytest.raises(RemoteError, match=f"s3://{name}/cat.png: {s3.url} fails, 6 times: ") as found:
        source(s3, name).read("cat.png")
    assert found.value.exit_code == 8 and len(s3.proxy.asked) == 6 and found.value.problems[0].fix


def test_retries_wait_half_a_second_and_then_twice_as_long_each(s3, name, monkeypatch):
    assert PAUSES == (0.5, 1, 2, 4, 8)
    waited = []
    monkeypatch.setattr(store.time, "sleep", waited.append)
    s3.proxy.fault = failing("503", 99)
    with pytest.raises(RemoteError):
        S3Source(source(s3, name).bucket).read("cat.png")
    assert waited == list(PAUSES)


def test_a_list_is_asked_for_in_pages_of_a_thousand_and_a_failed_page_again(s3, name):
    for number in range(7):
        s3.put(name, f"img{number}.png", b"x")
    s3.proxy.asked.clear()
    s3.proxy.per_page, s3.proxy.fault = 3, failing("503", 2, lists=True)
    assert [i.path for i in source(s3, name).list()] == ["cat.png", *(f"img{n}.png" for n in range(7))]
    pages = [asked.query for asked in s3.proxy.asked if asked.query["max-keys"] != ["1"]]
    assert len(pages) == 2 + 3 and all(page["max-keys"] == ["1000"] for page in pages)
    assert "continuation-token" in pages[-1]


def test_a_prefix_is_a_folder(s3, name):
    for key in ("cats/a.png", "cats/deep/b.png", "cats/", "cats/deep/", "cats2/c.png", "cats.png"):
        s3.put(name, key, b"x")
    for prefix in ("cats", "cats/", "/cats/"):
        found = source(s3, name, prefix=prefix)
        assert [i.path for i in found.list()] == ["a.png", "deep/b.png"] and found.read("a.png") == b"x"


def test_stamps_hold_the_etag(s3, name):
    (item,) = source(s3, name).list()
    assert item.stamp == f"10000-{s3.client.head_object(Bucket=name, Key='cat.png')['ETag'].strip(chr(34))}"


def test_connections_are_as_many_as_asked_for(s3, name):
    assert source(s3, name, connections=7)._client.meta.config.max_pool_connections == 7


def refused(error, found, seconds, part):
    """One problem that says what is wrong, where, and how to fix it; soon, and without the credentials."""
    assert isinstance(found, error) and seconds < SOON
    (problem,) = found.problems
    text = "\n".join(problem.lines())
    assert part in text and "s3://" in text and problem.fix and KEY_ID not in text and SECRET not in text
    return problem


def looked_at(source):
    begun = time.monotonic()
    with pytest.raises(SimpleTunerError) as found:
        list(source.list())
    return found.value, time.monotonic() - begun


def test_a_bucket_that_is_not_there(s3, name):
    problem = refused(DataError, *looked_at(source(s3, "no-such-bucket")), "no bucket no-such-bucket at " + s3.url)
    assert problem.exit_code == 3 and "aws_bucket_name" in problem.fix


def test_credentials_that_are_refused(s3, name):
    s3.check_logins(True)
    try:
        problem = refused(AccessError, *looked_at(source(s3, name)), "refuses these credentials")
        with pytest.raises(AccessError, match=f"s3://{name}/cat.png"):
            source(s3, name).read("cat.png")
    finally:
        s3.check_logins(False)
    assert problem.exit_code == 4 and "aws_access_key_id" in problem.fix


def test_what_a_server_says_of_the_credentials_is_not_passed_on(s3, name):
    s3.proxy.fault = lambda asked, number: "echo"
    listed, _ = looked_at(source(s3, name))
    with pytest.raises(AccessError) as read:
        source(s3, name).read("cat.png")
    for found in (listed, read.value):
        assert "who are you, AWS4-HMAC-SHA256 Credential=***" in str(found)
        assert KEY_ID not in "".join(traceback.format_exception(found))


def test_credentials_that_are_nowhere(s3, name, monkeypatch, tmp_path):
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    problem = refused(AccessError, *looked_at(source(s3, name, key_id=None, secret=None)), "credentials")
    assert problem.exit_code == 4 and "AWS_ACCESS_KEY_ID" in problem.fix
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert len(list(source(s3, name, key_id=None, secret=None).list())) == 1


@pytest.fixture
def silent():
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_is_not_there_or_says_nothing(s3, name, silent, monkeypatch):
    assert store.REACH_SECONDS < SOON - 5
    monkeypatch.setattr(store, "REACH_SECONDS", 1)
    for endpoint in ("http://127.0.0.1:9", "http://no.such.host.invalid", silent):
        problem = refused(RemoteError, *looked_at(source(s3, name, endpoint=endpoint)), f"{endpoint} cannot be reached")
        assert problem.exit_code == 8 and "aws_endpoint_url" in problem.fix


def test_credentials_are_in_no_text_of_the_bucket(s3, name):
    bucket = source(s3, name).bucket
    assert not any(secret in f"{bucket} {bucket!r}" for secret in (KEY_ID, SECRET))


# ---- datasets in buckets


@pytest.fixture
def cats(s3, tmp_path):
    """Four pictures with captions in a bucket, below cats/, and their entry."""
    name, folder = s3.bucket(), tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (80, 80), (40 * number, 90, 200)).save(folder / f"a_cat_{number}.png")
        (folder / f"a_cat_{number}.txt").write_text(f"number {number}")
    s3.upload(name, folder, "cats/")
    return {"id": "cats", **s3.entry(name, aws_data_prefix="cats")}


def reads(s3):
    """Objects that were asked for since the last look, with the range."""
    found = [(asked.path.rpartition("/")[2], asked.range) for asked in s3.proxy.asked if not asked.lists]
    s3.proxy.asked.clear()
    return found


@pytest.mark.parametrize(
    ("keys", "caption"),
    [
        ({"caption_strategy": "filename"}, "a cat 2"),
        ({"caption_strategy": "textfile"}, "number 2"),
        ({"caption_strategy": "instanceprompt", "instance_prompt": "a cat"}, "a cat"),
    ],
)
def test_captions_come_from_keys_and_from_objects(world, cats, keys, caption):
    (shelf,) = world.open({**cats, **keys}).shelves
    assert [item.sample.path for item in shelf.items] == [f"a_cat_{n}.png" for n in range(4)]
    assert shelf.items[2].sample.captions == (caption,)


def test_a_second_look_reads_nothing_but_what_has_changed(world, cats, s3):
    entry = {**cats, "caption_strategy": "textfile"}
    name = cats["aws_bucket_name"]
    before = s3.objects(name)
    world.fill(world.open(entry))
    assert ("a_cat_0.png", "bytes=0-65535") in reads(s3) and world.counts()["images"] == 4
    world.fill(world.open(entry))
    assert reads(s3) == [] and world.counts()["images"] == 4 and s3.objects(name) == before
    s3.put(name, "cats/a_cat_1.txt", b"another")
    world.fill(world.open(entry))
    assert reads(s3) == [("a_cat_1.txt", None)] and world.counts()["images"] == 4
    s3.put(name, "cats/a_cat_3.png", s3.client.get_object(Bucket=name, Key="cats/a_cat_0.png")["Body"].read() + b" ")
    world.fill(world.open(entry))
    assert {path.split(".")[0] for path, _ in reads(s3)} == {"a_cat_3"} and world.counts()["images"] == 5


@pytest.mark.parametrize("keys", [{"caption_strategy": "textfile"}, {}], ids=["captions", "headers"])
def test_objects_are_asked_for_over_as_many_connections_as_there_are(world, s3, tmp_path, keys):
    name, most = s3.bucket(), 12
    for number in range(40):
        Image.new("RGB", (80, 80), (number, 0, 0)).save(tmp_path / "x.png")
        s3.put(name, f"{number}.png", (tmp_path / "x.png").read_bytes())
        s3.put(name, f"{number}.txt", b"a caption")
    counts: dict[str, list[int]] = {}

    def slow(asked, number):
        count = counts.setdefault(asked.path[-3:], [0, 0])
        with lock:
            count[0] += 1
            count[1] = max(count)
        time.sleep(0.1)
        with lock:
            count[0] -= 1
        return ""

    lock, s3.proxy.fault = threading.Lock(), slow
    world.open({"id": "many", **s3.entry(name, aws_max_pool_connections=most), **keys})
    ending = "txt" if keys else "png"
    assert most - 3 <= counts[ending][1] <= most  # a busy machine may not get to the last ones


def test_an_object_that_goes_away_is_left_out_and_listed(world, cats, s3):
    library = world.open(cats)
    s3.client.delete_object(Bucket=cats["aws_bucket_name"], Key="cats/a_cat_1.png")
    library.shelves[0].hash()
    (left,) = library.shelves[0].scan.left_out
    assert (left.path, left.reason, left.detail) == ("a_cat_1.png", "unreadable", "is gone from the bucket")


def test_what_is_wrong_with_all_buckets_comes_together(world, cats):
    wrong = {**cats, "aws_bucket_name": "no-such-bucket", "id": "dogs"}
    gone = {**cats, "aws_endpoint_url": "http://127.0.0.1:9", "id": "birds"}
    with pytest.raises(DataError) as found:
        world.open(wrong, gone, cats)
    assert [problem.exit_code for problem in found.value.problems] == [3, 8] and found.value.exit_code == 3
    assert all("data.json:1" in problem.where for problem in found.value.problems)


def test_an_empty_folder_of_a_bucket_is_named(world, cats):
    with pytest.raises(DataError, match="0 files under s3://bucket-[0-9]+/dogs/"):
        world.open({**cats, "aws_data_prefix": "dogs"})


OPEN = {"id": "cats", "type": "aws", "aws_bucket_name": "cats"}


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"aws_bucket_name": None}, "aws_bucket_name is required"),
        ({"aws_bucket_name": "s3://cats/x"}, "is no name of a bucket"),
        ({"instance_data_dir": "cats"}, 'instance_data_dir belongs to type "local"'),
        ({"aws_bucket": "cats"}, 'unknown key "aws_bucket"'),
        ({"aws_access_key_id": KEY_ID}, "aws_access_key_id needs aws_secret_access_key"),
        ({"aws_secret_access_key": SECRET}, "aws_secret_access_key needs aws_access_key_id"),
        ({"aws_secret_access_key": [SECRET], "aws_access_key_id": None}, "aws_secret_access_key: expected a text"),
        ({"aws_endpoint_url": f"https://{KEY_ID}@host"}, "expected https://HOST"),
        ({"aws_endpoint_url": "host:9000"}, "expected https://HOST"),
        ({"aws_max_pool_connections": 0}, "aws_max_pool_connections"),
        ({"caption_strategy": "huggingface"}, "not yet"),
        ({"type": "local", "instance_data_dir": "."}, 'aws_bucket_name belongs to type "aws"'),
        ({"type": "local", "aws_bucket_name": None}, "instance_data_dir is required"),
        ({"type": "csv"}, "not yet"),
    ],
)
def test_what_is_refused_of_the_keys_and_how_it_is_said(world, keys, part):
    found, problems = world.load({**OPEN, **keys})
    (problem,) = [p for p in problems if p.severity == "error"]
    assert found is None and part in problem.message and problem.exit_code == 2 and problem.where
    assert not any(secret in json.dumps([p.record() for p in problems]) for secret in (KEY_ID, SECRET))


def test_what_is_given_is_taken_and_s3_is_another_word_for_it(world, monkeypatch):
    monkeypatch.setenv("A_SECRET", SECRET)
    login = {"aws_access_key_id": KEY_ID, "aws_secret_access_key": "{env:A_SECRET}", "aws_region_name": "eu-north-1"}
    more = {"aws_endpoint_url": "http://host:9000", "aws_data_prefix": "a/b", "instance_data_dir": ""}
    world.options = world.options.model_copy(update={"aws_max_pool_connections": 9})
    found, problems = world.load({**OPEN, **login, **more, "type": "s3"}, {**OPEN, "id": "own"})
    assert problems == []
    bucket = found.images[0].place.bucket
    assert bucket == Bucket("cats", "a/b", "eu-north-1", "http://host:9000", KEY_ID, SECRET, 9)
    assert found.images[1].place.bucket == Bucket("cats", connections=9)
    assert str(found.images[0].place) == "s3://cats/a/b/"
    assert not any(secret in repr(found) for secret in (KEY_ID, SECRET))


@pytest.mark.parametrize("keys", [{"type": "aws"}, {"aws_bucket_name": "cats"}])
def test_caches_stay_on_this_machine(world, keys):
    found, problems = world.load(OPEN, {"id": "texts", "dataset_type": "text_embeds", "default": True, **keys})
    (problem,) = problems
    assert found is None and "not yet: caches are kept in local folders" in problem.message
