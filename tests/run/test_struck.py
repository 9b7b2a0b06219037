"""Signals and sudden death at any moment: what was saved stays whole, and the next start goes on."""

import json
import os
import random
import signal
import time

import pytest
import small
from small import differences, exact, state

from simpletuner.data.cache import TensorCache
from simpletuner.events import read_lines

COMMAND = ("simpletuner.cli.main", "train")
STEPS = 5  # of the runs that are killed; each is saved


@pytest.fixture
def straight(config):
    """The undisturbed run that the others must equal; its caches are its own."""
    made = {}

    def make(steps=10, **changes):
        if steps not in made:
            caches = {"cache_dir_text": None, "cache_dir_vae": None}
            made[steps] = small.train(
                config(f"straight-{steps}", max_train_steps=steps, **caches, **changes)
            ).output_dir
        return made[steps]

    return make


def read_all(cache):
    """Reads and checks every item of every cache below; returns how many."""
    count = 0
    for path in cache.rglob("*.safetensors"):
        kind, folder = path.relative_to(cache).parts[0], path.parents[1]
        TensorCache.at(folder.parent, folder.name, kind).read(path.stem)
        count += 1
    return count


@pytest.mark.parametrize(
    ("calls_struck", "kills"),
    [(8, 10), pytest.param(20, 30, marks=pytest.mark.slow)],
)
def test_kills_while_caching_and_saving_lose_nothing(straight, forks, model, pictures, tmp_path, calls_struck, kills):
    """The first ones strike at a drawn call that changes the disk, the others after a drawn time."""
    changes = {"checkpoint_step_interval": 1, "checkpoints_total_limit": 2, "lora_dropout": 0.3}
    wanted = state(straight(STEPS, **changes), STEPS)
    before, chance = small.tree(pictures), random.Random(7)

    def fresh(number):
        home = tmp_path / f"home-{number}"
        return small.configure(home, model, pictures, max_train_steps=STEPS, **changes), home

    whole, home = fresh("whole")
    assert forks.run(whole) == 0
    calls, seconds = int(whole.with_name("out.json.calls").read_text()), forks.seconds
    assert calls > 100
    died, homes, begun = 0, 0, False
    while died < kills or begun:
        most = calls // 2
        if not begun:
            path, home = fresh(homes)
            homes, begun, most = homes + 1, True, calls // 5  # mostly while caching
        by_call = {"at_call": chance.randint(1, most)}
        strike = by_call if died < calls_struck else {"after": chance.random() * seconds}
        status = forks.run(path, **(strike if died < kills else {}))
        assert status in (0, -signal.SIGKILL), path.with_name("out.json.log").read_text()
        died += status != 0
        read_all(home / "cache")
        if status == 0:
            assert differences(wanted, state(home / "out", STEPS)) == []
            assert not list(home.rglob("*.bad")) and not list((home / "out").glob(".incomplete*"))
            assert [r["step"] for r in read_lines(home / "out/metrics.jsonl")][-1] == STEPS
            begun = False
    assert died == kills
    assert small.tree(pictures) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_a_signal_while_caching_ends_the_run_and_keeps_what_is_cached(config, straight, forks, tmp_path, number, code):
    path, output = config(), tmp_path / "out"
    assert forks.run(path, at_call=40, number=number) == code
    cached = read_all(tmp_path / "cache")
    assert 0 < cached < len(small.SIZES) + 9 and not list(output.glob("checkpoint-*"))
    stopped = small.events(output, "run.stopped")
    assert [(event["exit_code"], event["checkpoint"]) for event in stopped] == [(code, "")]
    log = path.with_name("out.json.log").read_text()
    assert "what is cached stays" in log and "Traceback" not in log
    assert forks.run(path) == 0
    assert differences(state(straight()), state(output)) == [] and exact(straight()) == exact(output)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), pytest.param(signal.SIGHUP, 143, marks=pytest.mark.slow)],
)
def test_the_command_passes_one_signal_on_and_the_run_is_resumable(config, straight, tmp_path, number, code):
    """SIGINT goes to the whole group, as a terminal's Ctrl-C does; the trainer hears it once, through its parent."""
    path, output = config(seed=-1, max_train_steps=2000, checkpoint_step_interval=10), tmp_path / "out"
    parent = small.start(path, *COMMAND, start_new_session=True)
    small.wait_for(output / "checkpoint-20", parent)
    trainer = small.holder(output)
    assert trainer != parent.pid
    (os.killpg if number == signal.SIGINT else os.kill)(parent.pid, number)
    said, _ = parent.communicate(timeout=30)
    assert parent.returncode == code, said
    assert "second signal" not in said and said.count("saving after this step") == 1 and "Traceback" not in said
    assert not small.alive(trainer)
    (stopped,) = small.events(output, "run.stopped")
    step, seed = max(small.metrics(output)), json.loads((output / "config.resolved.json").read_text())["seed"]
    assert f"this run has the seed {seed}" in said
    assert stopped["checkpoint"] == f"checkpoint-{step}" and stopped["exit_code"] == code
    small.train(config(seed=-1, max_train_steps=step + 3, checkpoint_step_interval=10))
    reference = straight(step + 3, seed=seed, checkpoint_step_interval=10)
    assert differences(state(reference, step + 3), state(output, step + 3)) == []
    assert exact(reference) == exact(output)


def test_a_killed_parent_leaves_a_run_that_can_be_stopped_and_resumed(config, tmp_path):
    """The trainer goes on alone, holds its lock, and a second start is refused until it ends."""
    path, output = config(max_train_steps=5000, checkpoint_step_interval=10), tmp_path / "out"
    parent = small.start(path, *COMMAND)
    small.wait_for(output / "checkpoint-10", parent)
    trainer = small.holder(output)
    parent.kill()
    parent.wait()
    refused = small.start(path, *COMMAND)
    assert f"in use by process {trainer}" in refused.communicate()[0] and refused.returncode == 2
    os.kill(trainer, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while small.alive(trainer):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (stopped,) = small.events(output, "run.stopped")
    assert (output / stopped["checkpoint"]).is_dir()
    parent.stdout.close()
