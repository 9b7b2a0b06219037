"""The door of `simpletuner dataset`: what it tells of a folder of odd pictures, and that it leaves the folder alone."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from program import alone

from simpletuner.cli.main import program
from simpletuner.errors import SimpleTunerError

LONG = "photo of a subject " + "and one more thing " * 20


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working directory with config.json and its pictures, and an environment that names no configuration."""
    alone(monkeypatch, tmp_path)
    paint(tmp_path / "pictures")
    configure()
    return tmp_path


def paint(folder: Path) -> None:
    folder.mkdir()
    pictures = {"wide.png": (160, 60), "square 1.png": (100, 100), "square 2.png": (64, 64), "tiny.png": (20, 20)}
    for number, (name, (width, height)) in enumerate(pictures.items()):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    shutil.copy(folder / "square 1.png", folder / "copy.png")
    cut = Image.effect_noise((90, 90), 50)
    cut.save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:2000])
    (folder / "page.jpg").write_text("<html>")
    captions = {"wide": LONG, "square 1": "a <b>cat</b>", "square 2": "a cat\nthe cat", "copy": "a cat", "cut": "cut"}
    for name, text in (captions | {"tiny": "tiny"}).items():
        (folder / f"{name}.txt").write_text(text)


def configure(**entry) -> None:
    """config.json of nano, and its dataset file."""
    default = {"id": "odd", "type": "local", "instance_data_dir": "pictures", "caption_strategy": "textfile"}
    default |= {"resolution": 64, "minimum_image_size": 32, "repeats": 1}
    Path("data.json").write_text(json.dumps([default | entry]))
    values = {"model_flavour": "nano", "output_dir": "out", "data_backend_config": "data.json", "resolution": 64}
    Path("config.json").write_text(json.dumps(values | {"validation_disable": True, "max_train_steps": 2}))


def tree(folder: str = "pictures") -> dict[str, tuple[int, str]]:
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (path.stat().st_mtime_ns, content)
    return found


def run(*words: str, code: int = 0) -> str:
    """stdout of the command; it must end with `code` and leave the pictures alone."""
    before = tree()
    done = CliRunner().invoke(program, [*words])
    assert done.exit_code == code, (done.output, done.exception)
    assert tree() == before
    return done.stdout


def wrong(*words: str) -> SimpleTunerError:
    error = CliRunner().invoke(program, [*words]).exception
    assert isinstance(error, SimpleTunerError), error
    return error


def report(*words: str, code: int = 0) -> dict:
    return json.loads(run("dataset", "report", "--json", *words, code=code))


# ---- report


def test_a_report_tells_everything_once():
    (found,) = report()["datasets"]
    assert (found["found"], found["used"], found["samples"], found["batches"]) == (7, 5, 10, 10)
    assert {item["path"]: item["reason"] for item in found["left_out"]} == {
        "page.jpg": "unreadable", "tiny.png": "too-small",
    }  # fmt: skip
    assert found["copies"] == [["copy.png", "square 1.png"]]
    assert found["captions"]["repeated"] == [["a cat", 2]] and found["captions"]["texts"] == 5
    assert {name: bucket["images"] for name, bucket in found["buckets"].items()} == {"64x64": 4, "112x32": 1}
    assert found["upscaled"] == []


def test_a_report_for_people_names_the_pictures():
    said = run("dataset", "report", "--resolution", "128")
    assert run("data", "check", "resolution=128") == said
    for words in (
        "5 of 7 are used, 2 left out",
        "too-small 1: tiny.png (20x20)",
        "5 x 2 = 10 samples in 10 batches",
        "copy.png = square 1.png",
        '"a cat" on 2',
        f"longest {len(LONG.strip())} letters: wide.png",
    ):
        assert words in said, said
    assert all(len(line) <= 120 for line in said.splitlines())


def test_pictures_without_a_caption_stop_a_training_but_not_its_report():
    Path("pictures/copy.txt").unlink()
    record = report(code=3)
    assert record["exit_code"] == 3 and "1 images have no caption" in record["problems"][0]["message"]
    (found,) = record["datasets"]
    assert found["captions"]["without"] == ["copy.png"] and found["used"] == 4


def test_a_folder_without_pictures_is_told_of():
    Path("empty").mkdir()
    configure(instance_data_dir="empty")
    record = report(code=3)
    assert record["datasets"][0]["used"] == 0 and "no images detected" in record["problems"][0]["message"]


def test_a_page_is_one_file_and_escapes_captions():
    run("dataset", "report", "--html", "pages/report.html")
    page = Path("pages/report.html").read_text()
    assert "a &lt;b&gt;cat&lt;/b&gt;" in page and "<b>cat" not in page
    assert page.count("data:image/webp;base64,") == 5  # four crops, since one is cut, and the tiny one left out
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page) and "http" not in page
    assert "truncated" in page and "tiny.png" in page


def test_nothing_is_written_among_the_pictures():
    for words in (("report", "--html", "pictures/report.html"), ("preview", "odd", "--out", "pictures/sheets")):
        error = wrong("dataset", *words)
        assert error.exit_code == 2 and "the images of dataset odd" in str(error)
    assert not list(Path("pictures").glob("*.html"))


# ---- scan


def test_a_scan_reads_headers_once():
    assert run("dataset", "scan") == "odd: 5 of 7 images are used; 7 headers read\n"
    assert run("dataset", "scan") == "odd: 5 of 7 images are used; 0 headers read\n"


def test_hash_finds_damage_and_edits_that_kept_size_and_time():
    run("dataset", "report")
    path = Path("pictures/square 2.png")
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1  # in the pixels' checksum or after them
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (found,) = json.loads(run("dataset", "scan", "--json"))["datasets"]
    assert (found["files_read"], found["changed"], found["used"]) == (0, 0, 5)
    (found,) = json.loads(run("dataset", "scan", "--hash", "--json"))["datasets"]
    assert (found["files_read"], found["used"]) == (5, 3)
    reasons = {item["path"]: item["reason"] for item in report()["datasets"][0]["left_out"]}
    assert reasons["cut.png"] == reasons["square 2.png"] == "truncated"


def test_hash_counts_what_changed():
    run("dataset", "report")
    path = Path("pictures/square 2.png")
    status = path.stat()
    Image.new("RGB", (64, 64), "red").save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (found,) = json.loads(run("dataset", "scan", "--hash", "--json"))["datasets"]
    assert found["changed"] == 1


# ---- preview


def test_a_preview_shows_the_crops_that_are_encoded():
    configure(id="cats", missing_caption="skip")
    for path in Path("pictures").iterdir():
        if path.stem not in ("wide", "square 2"):
            path.unlink()
    Image.new("RGB", (64, 64), (250, 10, 20)).save("pictures/square 2.png")
    wide = np.zeros((60, 160, 3), np.uint8)
    wide[:, 70:90] = (10, 240, 30)  # the middle, which a crop keeps
    Image.fromarray(wide).save("pictures/wide.png")
    (path,) = run("dataset", "preview", "cats", "--out", "sheets").split()
    assert path == "sheets/cats-1.jpg"
    with Image.open(path) as image:
        pixels = np.asarray(image).astype(int)
    near = lambda colour: np.abs(pixels - colour).max(-1) < 25  # noqa: E731
    assert 0.97 < near((250, 10, 20)).sum() / 320**2 < 1.03  # the whole square, five times as large
    # 160x60 becomes 112x42, cropped to 112x32 and drawn twice as large: the stripe is 14 x 2 wide and 32 x 2 high
    assert 0.85 < near((10, 240, 30)).sum() / (28 * 64) < 1.05
    assert 60 <= (near((10, 240, 30)).sum(1) > 20).sum() <= 64
    assert pixels.shape[1] == 2 * 24 + 2 * 320 + 20


def test_a_preview_of_many_is_spread_and_cut_into_pages():
    for number in range(70):
        Image.new("RGB", (64, 64), (3 * number, 100, 90)).save(f"pictures/more {number}.png")
        Path(f"pictures/more {number}.txt").write_text(f"{number} {LONG}")
    record = json.loads(run("dataset", "preview", "odd", "--json", "--out", "sheets", "--count", "60"))
    assert record["sheets"] == ["sheets/odd-1.jpg", "sheets/odd-2.jpg"]
    for path in record["sheets"]:
        with Image.open(path) as image:
            assert image.height <= 4096 and image.format == "JPEG"
    assert run("dataset", "preview", "odd", "--out", "few", "--count", "3").split() == ["few/odd-1.jpg"]


def test_a_preview_of_a_dataset_that_is_not_there_names_the_nearest():
    error = wrong("dataset", "preview", "od", "--out", "sheets")
    assert error.exit_code == 2 and "odd" in error.problems[0].fix


def test_a_wrong_configuration_stops_everything_with_all_mistakes():
    error = wrong("dataset", "report", "resolutoin=64", "repeats=x")
    assert error.exit_code == 2
    configure(instance_data_dir="nowhere", resolution=3)
    error = wrong("dataset", "scan")
    assert len([p for p in error.problems if p.severity == "error"]) == 2 and error.exit_code == 2


@pytest.mark.parametrize("words", [("scan", "--hash"), ("report", "--html", "page"), ("preview", "odd", "--out", "x")])
def test_no_torch_is_loaded(words):
    code = (
        f"import sys\nsys.argv = {['simpletuner', 'dataset', *words]!r}\n"
        "from simpletuner.cli.main import main\ntry:\n    main()\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.endswith("0 False\n"), done.stderr
