"""`simpletuner plan` and `train --dry-run` as commands: exit codes, JSON, speed, and no torch."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate"}
BUSY = 2  # other programs share the cores of a test machine
NANO = ("--example", "nano")


def run(*words, here: Path, **more: str) -> subprocess.CompletedProcess:
    environ = os.environ | {"COLUMNS": "80", "SIMPLETUNER_STATE_DIR": str(here / "state"), "HF_HUB_OFFLINE": "1"} | more
    argv = [sys.executable, "-m", "simpletuner.cli.main", *words]
    return subprocess.run(argv, capture_output=True, text=True, cwd=here, env=environ)


def test_a_plan_loads_no_torch(tmp_path):
    program = (
        "import sys\nsys.argv = ['simpletuner', 'plan', '--example', 'nano']\nfrom simpletuner.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('MODULES', *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    modules = set(done.stdout.splitlines()[-1].split()[1:])
    assert "simpletuner" in modules and not modules & HEAVY


def test_the_plan_of_the_example(tmp_path):
    done = run("plan", *NANO, here=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert "can start: yes" in done.stdout.splitlines()[0]
    assert done.stdout.endswith("next: simpletuner train --example nano\n")


def test_a_dry_run_is_the_plan_and_the_command(tmp_path):
    planned = run("plan", *NANO, "lora_rank=4", here=tmp_path).stdout
    for flag in ("--dry-run", "--dry_run"):
        dry = run("train", flag, *NANO, "lora_rank=4", here=tmp_path)
        *same, command = dry.stdout.splitlines()
        assert dry.returncode == 0 and "\n".join(same) + "\n" == planned
        assert command.startswith("starts: ") and command.endswith("nano/config.resolved.json")
        assert "-m simpletuner.recipe --config" in command
    results = tmp_path / "simpletuner-results" / "nano"
    assert not (results / "config.resolved.json").exists() and not (results / "events.jsonl").exists()


def test_as_json(tmp_path):
    done = run("train", "--dry-run", "--json", *NANO, here=tmp_path)
    record = json.loads(done.stdout)
    assert done.returncode == 0 and record["can_start"] and record["length"]["steps"] == 250
    assert record["command"][1:3] == ["-m", "simpletuner.recipe"]


@pytest.mark.parametrize("words", [(), ("--json",)], ids=["text", "json"])
def test_what_cannot_start_has_the_exit_code_of_the_reason(tmp_path, words):
    done = run("plan", *NANO, "train_batch_size=30", *words, here=tmp_path)
    assert done.returncode == 3
    if words:
        record = json.loads(done.stdout)
        assert not record["can_start"] and record["exit_code"] == 3 and "command" not in record
        assert "too small" in record["problems"][0]["message"]
    else:
        assert "can start: no" in done.stdout and "next:" not in done.stdout
        assert "Nothing was started. (exit 3)" in done.stderr


def test_a_mistake_in_the_configuration_is_told_as_validate_does(tmp_path):
    done = run("plan", *NANO, "lora_rnak=3", here=tmp_path)
    assert done.returncode == 2 and 'did you mean "lora_rank"' in done.stderr
    assert json.loads(run("plan", *NANO, "--json", "lora_rnak=3", here=tmp_path).stdout)["exit_code"] == 2


def test_resume_is_an_option_of_the_plan_too(tmp_path):
    done = run("plan", *NANO, "--resume", "checkpoint-7", here=tmp_path)
    assert done.returncode == 2 and "checkpoint-7 does not exist" in done.stderr


def picture(path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 65 * 64)) + chunk(b"IEND", b""))


@pytest.mark.parametrize(("count", "limit"), [(1_000, 3.0), (10_000, 5.0)])
def test_a_plan_of_scanned_pictures_is_quick(tmp_path, count, limit):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    picture(pictures / "0.png")
    for number in range(1, count):
        os.link(pictures / "0.png", pictures / f"a picture of number {number}.png")
    entry = {"id": "many", "type": "local", "instance_data_dir": str(pictures), "resolution": 64}
    (tmp_path / "datasets.json").write_text(json.dumps([entry]))
    shutil.copy(Path(__file__).parents[2] / "simpletuner/nano/config.json", tmp_path / "config.json")
    words = ("plan", "--config", "config.json", "data_backend_config=datasets.json", "output_dir=out")
    assert run(*words, here=tmp_path).returncode == 0  # fills the index
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        done = run(*words, "--json", here=tmp_path)
        taken.append(time.perf_counter() - begun)
        assert json.loads(done.stdout)["datasets"][0]["used"] == count
        if taken[-1] < limit:
            return
    assert min(taken) < limit * BUSY
