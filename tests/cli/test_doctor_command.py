"""`simpletuner doctor` on machines of all kinds: each fault gets its line, its fix and its exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from program import alone, run

from simpletuner import newfile, software
from simpletuner.check import check
from simpletuner.doctor import packages, room, runs
from simpletuner.software import TorchBuild, Unmet
from simpletuner.training import manifest
from simpletuner.training.lock import Lock
from simpletuner.training.options import Training

H100 = "0, GPU-1, NVIDIA H100 80GB HBM3, 81559, 81000, 9.0, 570.86.10"
SMALL = "0, GPU-1, NVIDIA GeForce RTX 3060, 12288, 12000, 8.6, 570.86.10"
CUDA = TorchBuild("2.11.0+cu128", "12.8", None)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    return alone(monkeypatch, tmp_path)


@pytest.fixture
def nano(here):
    run("examples", "copy", "nano", "--dest", "config")
    return here / "config/config.json"


@pytest.fixture
def dev(nano):
    """The same pictures for a full-size model."""
    datasets = nano.with_name("multidatabackend.json")
    datasets.write_text(datasets.read_text().replace('"resolution": 64', '"resolution": 256'))
    config = json.loads(nano.read_text())
    config |= {"model_flavour": "dev", "resolution": 256, "validation_resolution": "256x256"}
    config |= {"mixed_precision": "bf16", "train_batch_size": 1}
    nano.write_text(json.dumps(config))
    return nano


def checks(*words, **environ):
    """(exit code, title -> check) of the doctor's answer."""
    done = run("doctor", "--json", *words, **environ)
    record = json.loads(done.stdout)
    assert record["exit_code"] == done.returncode and done.stderr == ""
    return done.returncode, {check["title"]: check for check in record["checks"]}


def driver(monkeypatch, folder, answer):
    """An nvidia-smi that answers with these GPUs."""
    tool = folder / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\nprintf '%s\\n' '{answer}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


# ---- the whole


def test_a_healthy_machine_with_the_example_has_nothing_that_fails(nano):
    code, found = checks("--offline")
    assert code == 0 and all(check["state"] != "fail" for check in found.values())
    for title in ("Python", "torch", "packages", "RAM", "state folder", "configuration", "model", "output folder"):
        assert found[title]["state"] == "ok", found[title]


def test_people_get_a_line_for_each_check_and_the_fix_below(monkeypatch, nano):
    monkeypatch.setattr(software, "unmet", lambda: [Unmet("peft>=0.17", "0.5")])
    done = run("doctor", "--offline", COLUMNS="100")
    lines = done.stdout.splitlines()
    at = lines.index("fail     packages       peft>=0.17 (0.5)")
    assert lines[at + 1].strip() == "fix: pip install 'peft>=0.17'"
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("(exit 2)")


def test_the_first_failure_gives_the_code(monkeypatch, nano):
    monkeypatch.setattr(software, "torch_build", lambda: TorchBuild("2.11.0+cpu", None, None))
    driver(monkeypatch, nano.parent, H100)
    (nano.parent.parent / "config.json").write_text('{"lora_rnak": 4}')
    code, found = checks("--offline")
    assert found["torch"]["exit_code"] == 5 and found["configuration"]["exit_code"] == 2 and code == 5


def test_nothing_is_written_but_the_index_of_the_datasets(here, nano):
    before = set(here.rglob("*"))
    checks("--offline")
    written = {path.name for path in set(here.rglob("*")) - before if path.is_file()}
    assert written and all(name.startswith(("index", "rejected")) for name in written)


def test_the_run_that_the_configuration_describes_is_looked_at(nano):
    found = checks("--offline")[1]
    assert found["datasets"]["text"] == "24 of 24 images are used"
    assert found["image cache"]["text"].startswith("0 of 24 there") and "0 of" in found["text cache"]["text"]
    assert found["memory"]["text"].startswith("the run needs about") and found["disk"]["state"] == "ok"


def test_a_full_disk_fails(monkeypatch, nano):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000, "total": 10**12})())
    code, found = checks("--offline")
    assert code == 7 and found["disk"]["state"] == "fail"


def test_a_run_that_another_holds_cannot_start(nano):
    with Lock(Path("simpletuner-results/nano")):
        code, found = checks("--offline")
    assert code == 2 and "in use by process" in found["start"]["text"]


def test_torch_is_never_loaded_here(nano):
    code = "import sys\nsys.argv = ['simpletuner', 'doctor', '--offline']\nfrom simpletuner.cli.main import main\n"
    code += "try:\n    main()\nexcept SystemExit as end:\n    sys.exit(str('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.endswith("False\n")


# ---- torch and GPU


def test_a_torch_for_no_gpu_beside_a_gpu_fails(monkeypatch, here):
    monkeypatch.setattr(software, "torch_build", lambda: TorchBuild("2.11.0+cpu", None, None))
    driver(monkeypatch, here, H100)
    code, found = checks("--offline")
    assert code == 5 and "NVIDIA H100" in found["torch"]["text"] and "pip install" in found["torch"]["fix"]


def test_a_torch_that_cannot_compute_on_the_gpu_fails(monkeypatch, here):
    """The torch of this test sees no GPU; what it says of it is what the user reads."""
    monkeypatch.setattr(software, "torch_build", lambda: CUDA)
    driver(monkeypatch, here, H100)
    code, found = checks("--offline", CUDA_VISIBLE_DEVICES="0")
    assert code == 5 and found["torch on GPU"]["state"] == "fail" and found["torch on GPU"]["text"]
    assert found["GPU 0"]["text"] == "NVIDIA H100 80GB HBM3, 80 GiB, compute 9.0, driver 570.86.10"


def test_no_gpu_is_a_warning(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, found = checks("--offline")
    assert code == 0 and found["GPU"]["state"] == "warning"


def test_no_torch(monkeypatch):
    monkeypatch.setattr(software, "torch_build", lambda: None)
    code, found = checks("--offline")
    assert code == 2 and found["torch"]["fix"] == "pip install 'simpletuner[cuda]'"


def test_a_model_that_the_card_cannot_hold(monkeypatch, dev):
    monkeypatch.setattr(software, "torch_build", lambda: CUDA)
    monkeypatch.setattr(packages, "_try_gpu", lambda: "")
    driver(monkeypatch, dev.parent, SMALL)
    code, found = checks("--offline", HF_TOKEN="x")
    assert code == 5 and found["GPU memory"]["state"] == "fail" and "of 12.0 GiB" in found["GPU memory"]["text"]


# ---- limits and folders


def test_short_limits_warn(monkeypatch):
    monkeypatch.setattr(room, "LEAST_HANDLES", 10**9)
    monkeypatch.setattr(room, "LEAST_SHARED", 10**15)
    code, found = checks("--offline")
    assert code == 0 and found["file handles"]["fix"].startswith("ulimit -n")
    assert found["shared memory"]["state"] == "warning"


def test_a_clock_that_is_behind_warns(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert checks("--offline")[1]["clock"]["state"] == "warning"


def test_a_state_folder_on_a_network_disk_warns(monkeypatch, here):
    (here / "mounts").write_text(f"none / ext4 rw 0 0\nserver:/x {here} nfs4 rw 0 0\n")
    monkeypatch.setattr(room, "MOUNTS", here / "mounts")
    state = checks("--offline", SIMPLETUNER_STATE_DIR=str(here / "state"))[1]["state folder"]
    assert state["state"] == "warning" and "nfs4" in state["text"]
    assert room.network_kind(Path("/")) == ""


@pytest.mark.parametrize("title", ["state folder", "output folder"])
def test_a_folder_that_cannot_be_written_fails(monkeypatch, nano, title):
    monkeypatch.setattr(room, "unwritable", lambda folder: "read-only")
    monkeypatch.setattr("simpletuner.doctor.runs.unwritable", lambda folder: "read-only")
    code, found = checks("--offline")
    assert code == 7 and found[title]["state"] == "fail" and "read-only" in found[title]["text"]


def test_an_output_folder_that_cannot_be_is_one_failure(here):
    (here / "file").write_text("")
    code, found = checks("--offline", "--example", "nano", "output_dir=file/x")
    assert code == 7 and [title for title, check in found.items() if check["state"] == "fail"] == ["output folder"]


def test_a_cache_folder_that_cannot_be_is_told_of_the_datasets(nano):
    datasets = nano.with_name("multidatabackend.json")
    (first, *rest) = json.loads(datasets.read_text())
    datasets.write_text(json.dumps([first | {"cache_dir_vae": "/dev/null/x"}, *rest]))
    code, found = checks("--offline")
    assert code == 7 and found["datasets"]["state"] == "fail" and "/dev/null/x" in found["datasets"]["text"]


def test_a_probe_names_the_reason(here):
    (here / "file").write_text("")
    assert room.unwritable(here / "new/folder") == ""
    assert "cannot be written" in room.unwritable(here / "file")


# ---- configuration and checkpoint


def test_a_broken_configuration_is_told_in_one_line(here):
    (here / "config.json").write_text('{"lora_rnak": 4}')
    code, found = checks("--offline")
    assert code == 2 and "more" in found["configuration"]["text"]
    assert found["configuration"]["fix"] == "simpletuner validate"


def test_a_configuration_that_is_not_there_fails_only_if_it_was_asked_for():
    assert checks("--offline")[1]["configuration"]["state"] == "warning"
    code, found = checks("--offline", "--config", "nowhere.json")
    assert code == 2 and "no configuration found" in found["configuration"]["text"]


def saved(folder, step):
    """A checkpoint with one file and the manifest that describes it."""
    home = folder / f"checkpoint-{step}"
    home.mkdir(parents=True)
    (home / "state.json").write_text("{}")
    entry = {"name": "state.json", "bytes": 2, "sha256": newfile.sha256(home / "state.json")}
    (home / manifest.FILE).write_text(json.dumps({"schema": manifest.SCHEMA, "files": [entry]}))
    return home


def test_the_newest_checkpoint_is_compared_with_its_manifest(nano):
    config = check(nano, {}).config
    assert runs.checkpoint(config).text == "none yet"
    first, second = (saved(config[Training].output_dir, step) for step in (1, 2))
    assert runs.checkpoint(config).text == "checkpoint-2 is whole"
    (second / "state.json").write_text("[]")
    found = runs.checkpoint(config)
    assert found.state == "warning" and found.text.endswith("a run goes on from checkpoint-1")
    (first / "state.json").unlink()
    found = runs.checkpoint(config)
    assert found.exit_code == 7 and found.fix == "simpletuner checkpoint verify"


def test_a_run_whose_checkpoints_are_all_broken_cannot_start(nano):
    (saved(Path("simpletuner-results/nano"), 2) / "state.json").unlink()
    code, found = checks("--offline")
    assert code == 7 and found["checkpoint"]["state"] == found["start"]["state"] == "fail"


# ---- the hub


@pytest.fixture
def server(monkeypatch, here):
    """A hub on this machine, which can train what it has: it answers with `status`, and remembers what it was asked."""
    monkeypatch.setattr(software, "torch_build", lambda: CUDA)
    monkeypatch.setattr(packages, "_try_gpu", lambda: "")
    driver(monkeypatch, here, H100)

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.server.asked.append((self.path, self.headers.get("authorization")))
            self.send_response(self.server.status)
            if self.server.status == 307:
                self.send_header("location", "http://elsewhere.example/file")
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Hub) as hub_server:
        hub_server.asked, hub_server.status = [], 200
        threading.Thread(target=hub_server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub_server.server_port}")
        yield hub_server
        hub_server.shutdown()


PRIVATE = "pretrained_model_name_or_path=someone/flux"


@pytest.mark.parametrize(("status", "code"), [(200, 0), (302, 0), (307, 0), (401, 4), (403, 4), (404, 4), (500, 0)])
def test_access_to_the_model_is_asked_of_the_configured_hub_only(dev, server, status, code):
    server.status = status
    assert checks(PRIVATE, HF_TOKEN="mine")[0] == code
    ((path, token),) = server.asked
    assert path == "/someone/flux/resolve/main/model_index.json" and token == "Bearer mine"


def test_a_gated_model_without_a_login_is_told_without_asking(dev, server):
    code, found = checks()
    assert code == 4 and found["model"]["fix"].endswith("then: hf auth login") and server.asked == []


@pytest.mark.parametrize(("words", "environ"), [(["--offline"], {}), ([], {"HF_HUB_OFFLINE": "1"})])
def test_offline_asks_nothing(dev, server, words, environ):
    code, found = checks(*words, PRIVATE, **environ)
    assert code == 0 and found["model"]["state"] == "warning" and "not checked" in found["model"]["text"]
    assert server.asked == []


def test_a_hub_that_is_set_and_does_not_answer_fails(dev):
    dead = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    code, found = checks(PRIVATE, **dead)
    assert code == 8 and "does not answer" in found["model"]["text"]
    shutil.rmtree(dev.parent)
    code, found = checks(**dead)
    assert code == 8 and found["hub"]["fix"].endswith("unset HF_ENDPOINT")


def test_a_folder_without_the_model_fails(nano, here):
    (here / "model").mkdir()
    code, found = checks("--offline", "pretrained_model_name_or_path=model")
    assert code == 2 and "transformer" in found["model"]["text"]


def test_a_program_that_is_not_installed_wants_nothing():
    assert software.unmet("no-such-distribution-anywhere") == []
