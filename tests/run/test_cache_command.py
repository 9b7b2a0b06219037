"""`simpletuner cache` on the caches of a tiny real model: made without training, counted, checked, mended, cleared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import small
from click.testing import CliRunner

from simpletuner import encoding, process
from simpletuner.cli.main import program
from simpletuner.data.cache import TensorCache
from simpletuner.errors import SimpleTunerError
from simpletuner.training.lock import Lock

PROMPT = {"validation_disable": False, "validation_prompt": "a red cat", "validation_resolution": "64x64"}
ALONE = {"vae_batch_size": 1}  # pictures that are encoded alone have the same bits whatever else is to be encoded


def build(config: Path, only: str | None = None) -> int:
    """As `cache build` does in a process of its own."""
    return process.run(config, job=partial(encoding.encode, only=only))


def run(config: Path, *words: str, code: int = 0) -> str:
    done = CliRunner().invoke(program, ["cache", *words, "--config", str(config)])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def wrong(config: Path, *words: str) -> SimpleTunerError:
    error = CliRunner().invoke(program, ["cache", *words, "--config", str(config)]).exception
    assert isinstance(error, SimpleTunerError), error
    return error


def status(config: Path, *words: str) -> dict[str, tuple[int, int, int, int]]:
    """(needed, present, stale, unused) by part; the last two are those of its folder."""
    folders = json.loads(run(config, "status", "--json", *words))["caches"]
    return {
        part["name"]: (part["needed"], part["present"], folder["stale"]["items"], folder["unused"]["items"])
        for folder in folders
        for part in folder["parts"]
    }


def items(config: Path) -> dict[str, bytes]:
    """Every cache item below the configuration's folder, and what was left of one."""
    root = config.parent / "cache"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.safetensors*")}


def some_item(config: Path, kind: str) -> tuple[TensorCache, str, Path]:
    """(cache, key, file) of an item."""
    root = config.parent / "cache" / kind
    path = min(root.rglob("*.safetensors"))
    facts = json.loads(run(config, "status", "--json"))["caches"]
    encoder = next(folder["encoder"] for folder in facts if folder["kind"] == kind)
    return TensorCache.at(root, encoder, kind), path.stem, path


def shrink(path: Path) -> None:
    """Two pictures less."""
    datasets = path.parent / "datasets.json"
    datasets.write_text(json.dumps([json.loads(datasets.read_text())[0] | {"max_num_samples": 5}]))


# ---- build and status


def test_what_is_built_is_all_that_a_run_needs(config):
    path = config(max_train_steps=2, **PROMPT)
    assert status(path) == {"pictures": (7, 0, 0, 0), "text": (10, 0, 0, 0)}
    assert build(path) == 0
    assert status(path) == {"pictures": (7, 7, 0, 0), "text": (10, 10, 0, 0)}
    made = items(path)
    assert not (path.parent / "out" / "events.jsonl").exists(), "a build is no attempt of the run"
    small.train(path)
    assert items(path) == made
    first = {event["kind"]: event["hits"] for event in reversed(small.events(path.parent / "out", "cache.progress"))}
    assert first == {"text": 10, "vae": 7}


def test_one_kind_alone(config):
    path = config()
    assert build(path, "text") == 0
    assert {name: found[:2] for name, found in status(path).items()} == {"pictures": (7, 0), "text": (9, 9)}
    assert build(path, "vae") == 0
    assert {name: found[:2] for name, found in status(path).items()} == {"pictures": (7, 7), "text": (9, 9)}


def test_status_tells_what_other_settings_left_behind(config):
    path = config()
    build(path)
    assert status(path, "vae_dtype=bf16")["pictures"] == (7, 0, 7, 0)
    assert status(path, "mixed_precision=bf16")["text"] == (9, 0, 9, 0)
    shrink(path)
    assert status(path)["pictures"] == (5, 5, 0, 2)
    said = run(path, "status")
    assert "unused 2" in said and "outside output_dir" in said


def test_status_loads_no_torch(config):
    path = config()
    code = (
        f"import sys\nsys.argv = ['simpletuner', 'cache', 'status', '--config', {str(path)!r}]\n"
        "from simpletuner.cli.main import main\ntry:\n    main()\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=small.environment())
    assert done.stderr.endswith("0 False\n"), done.stderr


def test_a_build_that_was_killed_goes_on_where_it_was(config, forks):
    clean = config(**ALONE)
    assert build(clean) == 0
    wanted = items(clean)
    for path in (clean.parent / "cache").rglob("*.safetensors"):
        path.unlink()
    status = forks.run(clean, number=signal.SIGKILL, after="cache/**/*.safetensors", build=True)
    assert status == -signal.SIGKILL
    left = {name: data for name, data in items(clean).items() if name.endswith(".safetensors")}
    assert left and all(wanted[name] == data for name, data in left.items()), "an item is whole or not there"
    times = {name: (clean.parent / "cache" / name).stat().st_mtime_ns for name in left}
    assert build(clean) == 0
    assert items(clean) == wanted, "what was half written is gone, and all is there"
    assert all((clean.parent / "cache" / name).stat().st_mtime_ns == then for name, then in times.items())


def test_ctrl_c_stops_a_build_and_keeps_what_is_made(config):
    path = config()
    child = small.start(path, "simpletuner.encoding")
    small.wait_for(path.parent / "out" / "logs", child)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=60)[0]
    assert child.returncode == 130 and "what is cached stays" in said
    assert "Traceback" not in said


def test_a_build_in_a_process_of_its_own(config):
    path = config()
    done = subprocess.run(
        [sys.executable, "-m", "simpletuner.cli.main", "cache", "build", "--only", "text", "--config", str(path)],
        capture_output=True, text=True, env=small.environment(),
    )  # fmt: skip
    assert done.returncode == 0 and "the text cache is complete" in done.stderr, done.stderr
    assert status(path)["text"][:2] == (9, 9)
    assert not (path.parent / "out" / "config.resolved.json").exists(), "that of the run stays as it was"


# ---- verify


def test_whole_caches_pass(config):
    path = config()
    build(path)
    assert json.loads(run(path, "verify", "--json"))["checked"] == 16
    assert "16 items read, 0 damaged" in run(path, "verify")


@pytest.mark.parametrize(
    ("kind", "damage", "problem"),
    [
        ("vae", "flip", "checksum"),
        ("text", "cut", "checksum"),
        ("vae", "shape", "bytes in place of"),
        ("vae", "nan", "not finite"),
        ("text", "empty", "cut off"),
    ],
)
def test_a_damaged_item_is_named_with_its_picture_and_made_again(config, kind, damage, problem):
    path = config(**ALONE)
    build(path)
    before = items(path)
    cache, key, file = some_item(path, kind)
    data = file.read_bytes()
    if damage in ("shape", "nan"):
        latent = cache.read(key)["latent"]
        cache.write(key, {"latent": latent[:, :-1].clone() if damage == "shape" else latent * float("nan")})
    else:
        file.write_bytes({"flip": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-9], "empty": b""}[damage])
    record = json.loads(run(path, "verify", "--json", code=3))
    (damaged,) = record["damaged"]
    assert damaged["file"] == str(file) and problem in damaged["problem"]
    assert damaged["of"] is not None and (kind == "text" or damaged["of"].endswith(".png"))
    assert record["problems"][0]["message"] == "1 damaged cache item"
    assert file.exists() and not record["repaired"], "without --repair nothing is changed"
    if damage == "flip":  # once is enough: a process of its own makes it
        record = json.loads(run(path, "verify", "--repair", "--json"))
        assert record["repaired"] and items(path) == before


def test_what_no_run_would_read_is_not_read(config):
    path = config()
    build(path)
    said = run(path, "verify", "vae_dtype=bf16")
    assert "9 items read, 0 damaged; 7 of other models or precisions were not read" in said


# ---- prune


def test_prune_removes_after_a_yes_and_only_what_is_of_no_use(config):
    path = config()
    build(path)
    assert run(path, "prune") == "nothing to remove\n"
    shrink(path)
    root = path.parent / "cache" / "vae"
    folder = next(root.glob("????????????"))
    strange = [root / "notes.txt", folder / "aa" / f"{'a' * 64}.safetensors", root / "index-other.sqlite"]
    for file in strange:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    before = items(path)
    said = run(path, "prune", "--dry-run")
    assert "unused 2" in said and "shared: other of another configuration may need them" in said
    error = wrong(path, "prune")
    assert error.exit_code == 2 and "--yes" in error.problems[0].fix
    assert items(path) == before
    record = json.loads(run(path, "prune", "--yes", "--json"))
    vae = next(folder for folder in record["caches"] if folder["folder"] == str(root))
    assert record["removed"] and len(vae["files"]["unused"]) == 2
    assert all(file.exists() for file in strange)
    assert status(path)["pictures"][:2] == (5, 5)
    assert len(before) - len(items(path)) == sum(len(f["files"].get("unused", [])) for f in record["caches"])


def test_prune_reads_pictures_whose_index_is_gone(config):
    path = config()
    build(path)
    (path.parent / "cache" / "vae" / "index-pictures.sqlite").unlink()
    assert run(path, "prune") == "nothing to remove\n"


def test_prune_clears_leftovers_and_damaged_items(config):
    path = config()
    build(path)
    _, _, file = some_item(path, "text")
    child = subprocess.Popen(["true"])
    child.wait()
    file.with_name(f"{file.name}.bad").write_bytes(b"x")
    file.with_name(f"{file.name}.tmp-{child.pid}-0").write_bytes(b"x")
    said = run(path, "prune", "--yes")
    assert "damaged 1" in said and "half written 1" in said and said.endswith("removed\n")
    assert not [name for name in items(path) if not name.endswith(".safetensors")] and file.exists()


def test_prune_touches_nothing_while_a_dataset_is_broken(config, tmp_path):
    pictures = small.paint(tmp_path / "own")
    path = config(pictures=pictures)
    build(path)
    before = items(path)
    next(pictures.glob("*.txt")).unlink()
    error = wrong(path, "prune", "--yes")
    assert error.exit_code == 3 and "no caption" in str(error) and items(path) == before


def test_prune_waits_for_nobody(config):
    path = config()
    build(path)
    with Lock(path.parent / "out"):
        child = subprocess.run(
            [sys.executable, "-m", "simpletuner.cli.main", "cache", "prune", "--yes", "--config", str(path)],
            capture_output=True, text=True, env=small.environment(),
        )  # fmt: skip
    assert child.returncode == 2 and str(os.getpid()) in child.stderr


# ---- rebuild-index


def test_the_index_is_made_anew_and_finds_the_items_again(config):
    path = config()
    build(path)
    index = path.parent / "cache" / "vae" / "index-pictures.sqlite"
    index.write_bytes(b"no database")
    assert status(path)["pictures"][1] == 0, "pictures that were never read have no items yet"
    assert "7 files read and decoded" in run(path, "rebuild-index")
    assert status(path)["pictures"] == (7, 7, 0, 0)
