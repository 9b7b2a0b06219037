"""One run per directory, how it is asked to stop, and what it leaves when it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_run import equal

from simpletuner.errors import ConfigError
from simpletuner.events import EventLog, append_line, read_lines
from simpletuner.training.control import Control
from simpletuner.training.lock import Lock, boot_id
from simpletuner.training.signals import StopRequest

HERE = Path(__file__).parent


def start(folder, steps=1000, pause=0.05):
    """A child process that trains; returns it once two steps are done."""
    program = [sys.executable, str(HERE / "toy_run.py"), str(folder), str(steps), str(pause)]
    child = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (folder / "checkpoint-2").exists():
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return child


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_exits_with_its_code_and_the_rest_is_exact(tmp_path, run, number, code):
    child = start(tmp_path / "stopped")
    child.send_signal(number)
    _, stderr = child.communicate(timeout=10)
    assert child.returncode == code and "saving after this step" in stderr
    stopped = [e for e in read_lines(tmp_path / "stopped/events.jsonl") if e["type"] == "run.stopped"]
    assert stopped[-1]["data"]["exit_code"] == code
    step = stopped[-1]["data"]["step"]
    again = run("stopped", steps=step + 3)
    assert again.progress.step == step
    assert equal(again.train().everything(), run("straight", steps=step + 3).train().everything())


def test_a_second_signal_ends_at_once_and_leaves_the_checkpoint_before(tmp_path, run):
    child = start(tmp_path / "stopped", pause=1.0)
    time.sleep(0.3)  # the save is over, and the next batch is waited for
    child.send_signal(signal.SIGINT)
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=10)
    assert child.returncode == 130 and "second signal" in stderr
    assert run("stopped").progress.step == 2


def test_a_save_that_takes_longer_than_the_stop_timeout_is_given_up(tmp_path):
    program = (
        "import os, signal, time\nfrom simpletuner.training.signals import StopRequest\n"
        "with StopRequest(0.2):\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(20)"
    )
    begun = time.monotonic()
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=15)
    assert child.returncode == 143 and "stop_timeout" in child.stderr and time.monotonic() - begun < 10


def test_the_handlers_before_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert signal.getsignal(signal.SIGTERM) != before
        stop.ask("a test", 0)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_outranks_a_polite_stop_and_is_listened_for_to_the_end():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with StopRequest() as stop:
            stop.ask("a test", 0)
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.exit_code == 130 and stop.reason == "SIGINT"
        assert signal.getsignal(signal.SIGTERM) == stop._on_signal
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- the lock


def test_a_second_run_on_the_directory_is_refused_and_the_holder_is_named(tmp_path):
    with Lock(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()} on ") as caught:
        Lock(tmp_path).__enter__()
    assert caught.value.exit_code == 2
    with Lock(tmp_path):  # free again
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    program = (
        "import os, pathlib, signal\nfrom simpletuner.training.lock import Lock\n"
        f"Lock(pathlib.Path({str(tmp_path)!r})).__enter__()\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    holder = json.loads((tmp_path / ".lock").read_text())
    assert set(holder) == {"pid", "start", "since", "host", "boot_id"} and holder["pid"] != os.getpid()
    with Lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_lock_from_before_the_reboot_is_taken_over_and_one_of_another_machine_is_not(tmp_path):
    with Lock(tmp_path):
        mine = json.loads((tmp_path / ".lock").read_text())
    assert mine["boot_id"] == boot_id()
    (tmp_path / ".lock").write_text(json.dumps(mine | {"boot_id": "before"}))
    with Lock(tmp_path):
        pass
    (tmp_path / ".lock").write_text(json.dumps(mine | {"boot_id": "other", "host": "elsewhere"}))
    with pytest.raises(ConfigError, match="elsewhere") as caught:
        Lock(tmp_path).__enter__()
    assert "delete" in caught.value.problems[0].fix


def lock_of_another_machine(folder, silent):
    (folder / ".lock").write_text(json.dumps({"pid": 7, "host": "elsewhere", "boot_id": "other", "since": "then"}))
    then = time.time() - silent
    os.utime(folder / ".lock", (then, then))


def test_the_lock_of_another_machine_is_taken_over_after_a_minute_without_a_sign_of_life(tmp_path):
    lock_of_another_machine(tmp_path, silent=50)
    with pytest.raises(ConfigError, match="process 7 on elsewhere"):
        Lock(tmp_path).__enter__()
    lock_of_another_machine(tmp_path, silent=70)
    with Lock(tmp_path) as lock:
        assert "process 7 on elsewhere" in lock.taken_over and "no sign of life for 70 seconds" in lock.taken_over
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    with Lock(tmp_path) as lock:
        assert lock.taken_over == ""
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_the_holder_of_a_lock_gives_signs_of_life_until_it_lets_go(tmp_path, monkeypatch):
    monkeypatch.setattr("simpletuner.training.lock.BEAT_SECONDS", 0.02)
    with Lock(tmp_path):
        os.utime(tmp_path / ".lock", (0, 0))
        time.sleep(0.2)
        assert time.time() - (tmp_path / ".lock").stat().st_mtime < 5
    os.utime(tmp_path / ".lock", (0, 0))
    time.sleep(0.1)
    assert (tmp_path / ".lock").stat().st_mtime == 0


def test_a_torn_lock_file_is_taken_over(tmp_path):
    (tmp_path / ".lock").write_text('{"pid": 12')
    with Lock(tmp_path):
        pass


# ---- the control file


def ask(folder, id, command):
    append_line(folder / "control.jsonl", {"id": id, "command": command, "by": "cli"})


def test_each_command_is_carried_out_once_and_answered(tmp_path):
    control = Control(tmp_path, EventLog(tmp_path))
    assert control.commands() == []
    ask(tmp_path, "a", "checkpoint")
    ask(tmp_path, "b", "dance")
    ask(tmp_path, "a", "checkpoint")
    assert control.commands() == ["checkpoint"] and control.commands() == []
    answers = [(e["type"], e["data"]["id"]) for e in read_lines(tmp_path / "events.jsonl")]
    assert sorted(answers) == [("control.accepted", "a"), ("control.refused", "b")]


def test_a_command_from_before_the_start_is_refused_so_that_an_old_stop_stops_nothing(tmp_path):
    ask(tmp_path, "old", "stop")
    assert Control(tmp_path, EventLog(tmp_path)).commands() == []
    assert [e["type"] for e in read_lines(tmp_path / "events.jsonl")] == ["control.refused"]
    Control(tmp_path, EventLog(tmp_path))
    assert len(read_lines(tmp_path / "events.jsonl")) == 1


def test_the_trainer_saves_and_validates_on_command(run):
    one = run(control=True, steps=5, validate_every=1000)
    pull = one.loader.next

    def commanding():
        if one.progress.step == 1:
            ask(one.folder, "a", "checkpoint")
            ask(one.folder, "b", "validate")
        return pull()

    one.loader.next = commanding
    one.train()
    assert [e["reason"] for e in one.of_type("checkpoint.saved")] == ["control", "final"]
    assert one.validation.ran == [2, 5]


# ---- death at any moment


def test_a_kill_at_every_stage_of_a_save_leaves_a_directory_that_resumes(tmp_path):
    done = subprocess.run(
        [sys.executable, str(HERE / "kill_saves.py"), str(tmp_path)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["calls"] >= 30 and len(report["resumed_at"]) == report["calls"]
    assert set(report["resumed_at"]) == {2, 4} and report["wrong"] == []


def test_sigkill_in_the_middle_resumes_to_the_bits_of_the_straight_run(tmp_path, run):
    program = [sys.executable, str(HERE / "toy_run.py"), str(tmp_path / "killed"), "10"]
    child = subprocess.Popen([*program, "0.05"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed/checkpoint-6").exists():
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    again = run("killed", saving={"checkpoint_step_interval": 2})
    assert 6 <= again.progress.step < 10
    assert equal(again.train().everything(), run("straight").train().everything())
