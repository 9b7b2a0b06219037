import json
import os
import time

import pytest
import torch
from safetensors.torch import save_file

from simpletuner.errors import ConfigError, DiskError, SimpleTunerError
from simpletuner.events import EventLog, read_lines
from simpletuner.training.checkpoint import Checkpoints, Contents
from simpletuner.training.manifest import verify
from simpletuner.training.options import Saving

STATE = {"step": 0, "epoch": 1, "position": 0, "samples": 0}


def made(folder, saving=None, **changes):
    """Checkpoints of one tensor, prepared; `changes` go to the constructor or to Contents."""
    fields = {k: changes.pop(k) for k in ("check", "writers", "readers", "result", "estimated_bytes") if k in changes}
    contents = Contents(
        **{
            "writers": {"weights.safetensors": lambda path: save_file({"w": torch.ones(8)}, path)},
            "readers": {},
            "facts": {"model_family": "toy", "base": {"id": "toy/base"}},
            "result": "weights.safetensors",
        }
        | fields
    )
    checkpoints = Checkpoints(folder, Saving(**(saving or {})), EventLog(folder), contents, **changes)
    checkpoints.prepare()
    return checkpoints


def save(checkpoints, *steps, reason="interval"):
    return [checkpoints.save(step, reason, STATE | {"step": step}) for step in steps]


def names(folder):
    return sorted(p.name for p in folder.glob("checkpoint-*"))


def event_types(folder):
    return [e["type"] for e in read_lines(folder / "events.jsonl")]


def test_a_checkpoint_holds_what_its_manifest_lists(tmp_path):
    (folder,) = save(made(tmp_path), 5)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    listed = {f["name"]: f for f in manifest["files"]}
    assert set(listed) == {"weights.safetensors", "state/trainer.json"}
    assert all((folder / name).stat().st_size == f["bytes"] and len(f["sha256"]) == 64 for name, f in listed.items())
    assert manifest["schema"] == 1 and manifest["step"] == 5 and manifest["reason"] == "interval"
    assert manifest["model_family"] == "toy" and manifest["base"] == {"id": "toy/base"}
    assert verify(folder) == []
    event = read_lines(tmp_path / "events.jsonl")[-1]
    assert event["type"] == "checkpoint.saved" and event["data"]["path"] == "checkpoint-5"


@pytest.mark.parametrize("keep", [0, 1, 0.5, -1])
@pytest.mark.parametrize("name", ["weights.safetensors", "state/trainer.json", "MANIFEST.json"])
def test_a_cut_file_is_found_and_the_checkpoint_before_is_used(tmp_path, name, keep):
    checkpoints = made(tmp_path)
    older, newer = save(checkpoints, 2, 4)
    data = (newer / name).read_bytes()
    cut = int(len(data) * keep) if keep == 0.5 else keep if keep >= 0 else len(data) - 1
    (newer / name).write_bytes(data[:cut])
    assert name.rpartition("/")[2] in verify(newer)[0]
    assert checkpoints.find("latest") == older
    assert newer.is_dir() and "warning" in event_types(tmp_path)


def test_one_flipped_bit_anywhere_in_the_tensors_is_found(tmp_path):
    (folder,) = save(made(tmp_path), 1)
    file = folder / "weights.safetensors"
    data = bytearray(file.read_bytes())
    for place in (9, len(data) // 2, len(data) - 1):
        data[place] ^= 1
        file.write_bytes(data)
        assert "hash differs" in verify(folder)[0]
        data[place] ^= 1
    file.write_bytes(data)
    assert verify(folder) == []


def test_a_missing_file_and_a_foreign_schema_are_named(tmp_path):
    first, second, third = save(made(tmp_path), 1, 2, 3)
    (first / "weights.safetensors").unlink()
    manifest = json.loads((second / "MANIFEST.json").read_text())
    (second / "MANIFEST.json").write_text(json.dumps(manifest | {"schema": 2}))
    (third / "optimizer.bin").touch()
    assert "is missing" in verify(first)[0] and "schema 2" in verify(second)[0] and "pickles" in verify(third)[0]


def test_no_valid_checkpoint_is_an_error_and_never_a_silent_start_at_zero(tmp_path):
    checkpoints = made(tmp_path)
    for folder in save(checkpoints, 1, 2):
        (folder / "MANIFEST.json").unlink()
    with pytest.raises(DiskError) as caught:
        checkpoints.find("latest")
    assert caught.value.exit_code == 7 and len(caught.value.problems[0].details) == 2


def test_an_explicit_checkpoint_is_found_by_name_or_path_or_refused(tmp_path):
    checkpoints = made(tmp_path)
    first, second = save(checkpoints, 1, 2)
    assert checkpoints.find("checkpoint-1") == first and checkpoints.find(str(second)) == second
    with pytest.raises(ConfigError, match="checkpoint-9 does not exist"):
        checkpoints.find("checkpoint-9")
    (first / "weights.safetensors").unlink()
    with pytest.raises(DiskError, match="damaged"):
        checkpoints.find("checkpoint-1")


def test_none_starts_afresh_and_keeps_the_old_ones_out_of_the_way(tmp_path):
    checkpoints = made(tmp_path)
    save(checkpoints, 500)
    assert made(tmp_path).find("none") is None
    fresh = made(tmp_path)
    save(fresh, 2)
    assert fresh.find("latest").name == "checkpoint-2"
    assert verify(tmp_path / "earlier-1/checkpoint-500") == []
    assert made(tmp_path).find("never") is None and names(tmp_path / "earlier-2") == ["checkpoint-2"]


def test_only_strict_names_count(tmp_path):
    for name in ("checkpoint-", "checkpoint-5-old", "checkpoint-abc", "my-checkpoint-7"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-3").write_text("a file")
    checkpoints = made(tmp_path)
    assert checkpoints.steps() == {} and checkpoints.find("latest") is None


def test_a_damaged_checkpoint_of_the_same_step_is_set_aside_for_the_new_one(tmp_path):
    (folder,) = save(made(tmp_path), 4)
    (folder / "weights.safetensors").write_bytes(b"")
    again = made(tmp_path)
    save(again, 4)
    assert verify(folder) == [] and len(list(tmp_path.glob(".broken-4-*"))) == 1


# ---- rotation


def test_the_oldest_go_and_at_most_one_more_than_the_limit_exists(tmp_path):
    checkpoints, most = made(tmp_path, {"checkpoints_total_limit": 2}), 0
    emit = checkpoints.events.emit

    def counting(*args, **data):
        nonlocal most
        most = max(most, len(names(tmp_path)))
        return emit(*args, **data)

    checkpoints.events.emit = counting
    save(checkpoints, 1, 2, 3, 4)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"] and most == 3
    assert event_types(tmp_path).count("checkpoint.deleted") == 2
    assert event_types(tmp_path).count("warning") == 1  # the first deletion names the option that governs it
    assert not list(tmp_path.glob(".deleting-*"))


def test_multiples_of_keep_every_stay_and_zero_keeps_all(tmp_path):
    save(made(tmp_path / "a", {"checkpoints_total_limit": 1, "checkpoints_keep_every": 4}), *range(2, 11, 2))
    assert names(tmp_path / "a") == ["checkpoint-10", "checkpoint-4", "checkpoint-8"]
    save(made(tmp_path / "b", {"checkpoints_total_limit": 0}), *range(1, 9))
    assert len(names(tmp_path / "b")) == 8


def test_a_failed_delete_is_a_warning(tmp_path, monkeypatch):
    checkpoints = made(tmp_path, {"checkpoints_total_limit": 1})
    save(checkpoints, 1)

    def refuse(path):
        raise OSError("busy")

    monkeypatch.setattr("shutil.rmtree", refuse)
    assert save(checkpoints, 2)[0] is not None
    assert "checkpoint_not_deleted" in [e["data"].get("code") for e in read_lines(tmp_path / "events.jsonl")]


# ---- failures


def test_an_error_before_the_rename_leaves_the_one_before_and_announces_nothing(tmp_path, monkeypatch):
    checkpoints = made(tmp_path)
    (older,) = save(checkpoints, 1)
    before = {p: p.read_bytes() for p in older.rglob("*") if p.is_file()}

    def broken(handle):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", broken)
    checkpoints.events.path = None  # the log would need fsync as well
    seen = []
    checkpoints.events.subscribe(lambda e: seen.append(e.type))
    assert save(checkpoints, 2) == [None]
    with pytest.raises(DiskError):
        save(checkpoints, 3, reason="final")
    assert seen == ["checkpoint.failed"] * 2 and names(tmp_path) == ["checkpoint-1"]
    assert {p: p.read_bytes() for p in older.rglob("*") if p.is_file()} == before
    monkeypatch.undo()
    assert checkpoints.find("latest") == older


def test_a_result_that_fails_its_check_is_renamed_after_the_state_is_safe(tmp_path):
    checkpoints = made(tmp_path, check=lambda path: ["no module changes its layer"])
    with pytest.raises(SimpleTunerError) as caught:
        save(checkpoints, 3)
    assert caught.value.exit_code == 1
    folder = tmp_path / "checkpoint-3"
    assert verify(folder) == [] and (folder / "weights.unverified.safetensors").exists()
    assert event_types(tmp_path)[-2:] == ["checkpoint.saved", "export.failed"]


def test_a_result_that_is_the_state_as_well_is_not_saved_if_it_fails_its_check(tmp_path):
    wrong: list[str] = []
    reader = {"weights.safetensors": lambda path: None}
    checkpoints = made(tmp_path, readers=reader, check=lambda path: wrong)
    (older,) = save(checkpoints, 1)
    wrong.append("w does not hold the trained values")
    with pytest.raises(SimpleTunerError, match="weights.safetensors failed its check") as caught:
        save(checkpoints, 3)
    assert caught.value.exit_code == 1 and caught.value.problems[0].details == tuple(wrong)
    assert names(tmp_path) == ["checkpoint-1"] and checkpoints.find("latest") == older
    assert event_types(tmp_path)[-1] == "checkpoint.failed"


def test_a_writer_may_make_a_folder_whose_every_file_is_listed_and_checked(tmp_path):
    def write(path):
        path.mkdir()
        for number in (1, 2):
            save_file({f"w{number}": torch.ones(8)}, path / f"{number}.safetensors")

    checkpoints = made(tmp_path, writers={"model": write}, result="model", check=lambda path: [])
    (folder,) = save(checkpoints, 1)
    listed = [entry["name"] for entry in json.loads((folder / "MANIFEST.json").read_text())["files"]]
    assert listed == ["model/1.safetensors", "model/2.safetensors", "state/trainer.json"]
    (folder / "model/2.safetensors").write_bytes(b"")
    assert "model/2.safetensors" in verify(folder)[0]


def test_left_overs_are_set_aside_at_the_next_start_and_go_after_a_week(tmp_path):
    (tmp_path / ".incomplete-7-abc").mkdir()
    (tmp_path / ".deleting-checkpoint-1-abc").mkdir()
    old = tmp_path / ".broken-1-abc"
    old.mkdir()
    os.utime(old, (time.time() - 8 * 86400,) * 2)
    made(tmp_path)
    assert not old.exists() and not list(tmp_path.glob(".deleting-*")) and not list(tmp_path.glob(".incomplete-*"))
    assert len(list(tmp_path.glob(".broken-7-*"))) == 1


def test_a_directory_that_cannot_be_written_is_found_by_the_probe(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DiskError) as caught:
        Checkpoints(tmp_path / "file/out", Saving(), EventLog(None), Contents({}, {})).prepare()
    assert caught.value.exit_code == 7


# ---- space


def test_low_space_skips_the_save_warns_once_and_tries_again(tmp_path, monkeypatch):
    free = [10**9]
    checkpoints = made(tmp_path, {"disk_low_threshold": "1M"}, free_bytes=lambda path: free[0])
    save(checkpoints, 500)
    free[0] = 10**5
    assert save(checkpoints, 1000, 1500) == [None, None]
    assert event_types(tmp_path).count("disk.low") == 1
    assert checkpoints.due(1501, 0, 0) is None
    late = time.monotonic() + 61
    monkeypatch.setattr("time.monotonic", lambda: late)
    assert checkpoints.due(1502, 0, 0) == "interval"
    free[0] = 10**9
    assert save(checkpoints, 1502)[0].name == "checkpoint-1502"
    assert checkpoints.due(1503, 0, 0) is None


def test_space_is_wanted_for_the_last_checkpoint_and_a_bit_more(tmp_path):
    free = [10**9]
    checkpoints = made(tmp_path, free_bytes=lambda path: free[0])
    (folder,) = save(checkpoints, 1)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    free[0] = int(2.2 * size) - 1
    assert save(checkpoints, 2) == [None]
    free[0] += 1
    assert save(checkpoints, 3)[0] is not None


def test_before_the_first_save_the_estimate_counts(tmp_path):
    assert save(made(tmp_path, estimated_bytes=1000, free_bytes=lambda path: 2199), 1) == [None]


def test_wait_pauses_until_there_is_space_and_stop_ends_with_7(tmp_path):
    free, waits = [0], []

    def sleep(seconds):
        waits.append(seconds)
        free[0] = 10**9 if len(waits) == 2 else 0

    low = {"disk_low_threshold": "1k"}
    waiting = made(tmp_path, low | {"disk_low_action": "wait"}, free_bytes=lambda path: free[0], sleep=sleep)
    assert save(waiting, 1)[0] is not None and waits == [30.0, 30.0]
    free[0] = 0
    stopping = made(tmp_path, low | {"disk_low_action": "stop"}, free_bytes=lambda path: free[0])
    with pytest.raises(DiskError) as caught:
        save(stopping, 2)
    assert caught.value.exit_code == 7 and names(tmp_path) == ["checkpoint-1"]
