"""The report of a run: everything the files say, nothing that leaves the page, and no trouble for the run."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from simpletuner.errors import DiskError, SimpleTunerError
from simpletuner.events import EventLog, append_line
from simpletuner.tracking import report
from simpletuner.tracking.report import chart as charts
from simpletuner.tracking.report import record
from simpletuner.tracking.report.chart import Line, chart, smoothed, spread, thinned, ticks

EVIL = '<img src=x onerror="alert(1)">&\'"</script><script>alert(2)</script>'
HOSTILE_NAME = "run <b>& 'x'"


def picture(path: Path, size=(64, 64), colour="red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def media(folder, step, nickname="chef", prompt="a chef", size=(64, 64), index=0, file=None):
    file = file or f"validation_images/step_{step} #{nickname}?_{index}.png"
    settings = {"prompt": prompt, "size": f"{size[0]}x{size[1]}", "seed": 1}
    line = {"step": step, "nickname": nickname, "index": index, "W": size[0], "H": size[1], "file": file}
    append_line(folder / record.MEDIA, line | {"settings": settings})
    if not (folder / file).exists():
        picture(folder / file, size)


def metrics(folder, losses, attempt=1, first=1):
    for step, loss in enumerate(losses, first):
        values = {
            "train_loss": loss,
            "loss_ema": loss,
            "learning_rate": 1e-4,
            "grad_norm": 1.0,
            "seconds_per_step": 0.5,
        }
        append_line(folder / record.METRICS, {"v": 1, "attempt": attempt, "step": step, "values": values})


@pytest.fixture
def folder(tmp_path):
    """The files of a finished run, with markup in every text that a user can write."""
    home = tmp_path / HOSTILE_NAME
    home.mkdir()
    events = EventLog(home)
    events.emit("run.started", family="flux", flavour="nano", model_type="lora", world_size=1)
    events.emit("dataset.report", dataset=EVIL, images=7, excluded={EVIL: 2}, buckets={"64x64": 7}, report={})
    metrics(home, [2.0, 1.5, 1.0, 0.5])
    events.step = 4
    events.emit("step.done", loss=0.5, total_steps=4)
    for step in (2, 4):
        media(home, step)
        media(home, step, EVIL.replace("/", "_"), EVIL)
    base = picture(home / record.BASE / "chef.png", colour="blue")
    settings = {"prompt": "a chef", "size": "64x64"}
    line = {"nickname": "chef", "index": 0, "W": 64, "H": 64, "file": base.name, "settings": settings}
    (home / record.BASE / "index.json").write_text(json.dumps({"v": 1, "images": [line]}))
    config = {"_source": "/x/config.json", "_origins": {"validation_prompt": "/x/config.json:7:3", EVIL: EVIL}}
    config["_origins"] |= {"validation_guidance": "flavour nano"}
    config |= {"seed": 42, "validation_prompt": EVIL, "validation_guidance": 3.0, EVIL: EVIL, "output_dir": str(home)}
    (home / record.CONFIG).write_text(json.dumps(config))
    events.warn(EVIL, EVIL, EVIL)
    events.emit("export.done", path="pytorch_lora_weights.safetensors", format="diffusers", checks=[])
    events.emit("run.finished", step=4, result="pytorch_lora_weights.safetensors", seconds=2.0, pending_uploads=0)
    return home


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.texts, self.source = [], [], path.read_text("utf-8")
        self.feed(self.source)
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in ("style", "script"):
            self.texts.append(data)

    def of(self, tag, kind=""):
        return [attrs for name, attrs in self.tags if name == tag and kind in (attrs.get("class") or "")]


def page(folder, **options) -> Page:
    return Page(report.build(folder, **options))


# ---- what is on the page


def test_the_page_tells_the_run(folder):
    found = page(folder)
    assert HOSTILE_NAME in found.text and "finished" in found.text and "LoRA rank" in found.text
    assert len(found.of("polyline", "raw")) == len(found.of("polyline", "smooth")) == 1  # the loss
    assert len(found.of("polyline", "plain")) == 2  # rate and gradient
    assert len(found.of("article")) == 2 and len(found.of("div", "compare pair")) == 1  # one has a base image
    assert [image["data-step"] for image in found.of("img", "after")] == ["2", "4"] * 2
    assert ["hidden" in image for image in found.of("img", "after")] == [True, False] * 2
    assert "simpletuner generate --run" in found.text and "pytorch_lora_weights.safetensors" in found.text


def test_every_text_is_escaped_wherever_it_stands(folder):
    found = page(folder)
    assert found.text.count(EVIL) >= 6  # prompt, nickname, setting and its key, dataset, warning: shown as written
    assert not [tag for tag, attrs in found.tags if "onerror" in attrs] and not found.of("b")
    assert len(found.of("script")) == 1
    for attribute in (value for _, attrs in found.tags for value in attrs.values() if value and "alert(1)" in value):
        assert EVIL in attribute  # an attribute's value, and not the end of one


def test_the_commands_can_be_typed_as_they_stand(folder):
    resolved = json.loads((folder / record.CONFIG).read_text())
    home = resolved.get("output_dir") or HOSTILE_NAME
    resolved["output_dir"] = home = f"{home} & 'more'"
    (folder / record.CONFIG).write_text(json.dumps(resolved))
    text = page(folder).text
    assert f"simpletuner generate --run {shlex.quote(home)} --prompt " in text
    assert f"simpletuner report {shlex.quote(home)}" in text


def test_nothing_on_the_page_asks_the_network_for_anything(folder):
    for embed in (False, True):
        found = page(folder, embed=embed)
        addresses = [
            attrs[key] for _, attrs in found.tags for key in ("src", "href", "srcset", "action") if key in attrs
        ]
        assert addresses and not [a for a in addresses if re.match(r"(?i)\s*(?!data:)[a-z][a-z0-9+.-]*:|//", a)]
        plain = re.sub(r'"data:image/[^"]*"', '""', found.source)
        assert "://" not in plain and "@import" not in plain and not re.search(r"url\((?!#)", plain)
        assert not found.of("iframe") and {tag for tag, _ in found.tags} & {"object", "embed", "form", "base"} == set()


def test_linked_images_are_found_from_where_the_page_lies(folder, tmp_path):
    from urllib.parse import unquote

    moved = tmp_path / "moved"
    report.build(folder)
    shutil.move(folder, moved)
    sources = [image["src"] for image in Page(moved / report.FILE).of("img")]
    assert len(sources) == 2 + 1 + 2 + 4 and all((moved / unquote(source)).is_file() for source in sources)


def test_an_embedded_page_stands_alone_with_images_of_at_most_1024_pixels(folder, tmp_path):
    media(folder, 4, "large", "a large one", size=(1600, 800))
    report.build(folder, embed=True)
    shutil.move(folder / report.FILE, tmp_path / "alone.html")
    found = Page(tmp_path / "alone.html")
    sizes = []
    for image in found.of("img"):
        kind, _, data = image["src"].partition(";base64,")
        assert kind == "data:image/webp"
        sizes.append(Image.open(io.BytesIO(base64.b64decode(data))).size)
    assert (1024, 512) in sizes and max(max(size) for size in sizes) == 1024
    first = Image.open(io.BytesIO(base64.b64decode(found.of("img", "before")[0]["src"].partition(",")[2])))
    assert first.convert("RGB").getpixel((5, 5)) == (0, 0, 255)  # tiny pictures keep their exact pixels


def test_given_settings_come_first_with_their_origin(folder):
    text = page(folder).text
    given, _, rest = text[text.index("Settings") :].partition("that were not set")
    assert "config.json:7:3" in given and "/x/config.json" not in given
    assert "seed" in rest and "validation_guidance" in rest and "flavour nano" in rest and "seed" not in given


def test_datasets_are_those_of_the_newest_checkpoint_or_else_of_the_scan(folder):
    assert "7" in page(folder).text and f"2 {EVIL}" in page(folder).text
    for step, images in ((2, 5), (10, 31)):
        (folder / f"checkpoint-{step}").mkdir()
        described = [{"id": "cats", "images": images, "excluded": {}, "buckets": {"64x64": images}, "repeats": 8}]
        (folder / f"checkpoint-{step}/datasets.json").write_text(json.dumps(described))
    text = page(folder).text
    assert "64x64 (31)" in text and EVIL not in text[text.index("Datasets") : text.index("Events")]


def test_warnings_stand_before_all_events_and_once(folder):
    events = EventLog(folder)
    for _ in range(3):
        events.warn("x", "the disk is nearly full", "free some space")
    alarms, everything = re.split(r"All \d+ events", page(folder).text)
    alarms = alarms[alarms.index("Datasets") :]
    assert alarms.count("the disk is nearly full (free some space)") == 1
    assert everything.count("the disk is nearly full (free some space)") == 3


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        ("run.finished", "finished"),
        ("run.failed", "failed"),
        ("run.stopped", "stopped"),
        ("run.started", "in progress"),
    ],
)
def test_the_state_is_that_of_the_last_start(folder, ending, state):
    EventLog(folder).emit("run.started")
    EventLog(folder).emit(ending, step=4, message="", reason="SIGTERM", exit_code=1)
    found = page(folder)
    assert found.of("p", "state") and state in found.text[: found.text.index(" steps ")]


def test_several_sizes_and_numbers_are_told_apart(folder):
    media(folder, 4, size=(96, 64), file="validation_images/wide.png")
    media(folder, 4, index=1, file="validation_images/second.png")
    text = page(folder).text
    assert "96x64, number 1" in text and "64x64, number 2" in text


# ---- files that are not as they should be


def test_an_empty_folder_and_damaged_files_make_a_page_all_the_same(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "in progress" in page(tmp_path / "empty").text
    bad = tmp_path / "bad"
    (bad / record.BASE).mkdir(parents=True)
    (bad / record.BASE / "index.json").write_text('{"images": [1, {"file": 3}, {"nickname": "x"}]}')
    (bad / record.CONFIG).write_text("{")
    (bad / "checkpoint-3").mkdir()
    (bad / "checkpoint-3/datasets.json").write_text("[1]")
    lines = ['{"step": "x"}', "[]", '{"step": 1, "values": {"train_loss": null}}', '{"step":1,"values":{"train_lo']
    (bad / record.METRICS).write_text("\n".join(lines))
    (bad / record.MEDIA).write_text(
        '{"step": 1, "nickname": "x", "index": 0, "W": 1, "H": 1, "file": 1, "settings": 2}\n'
    )
    EventLog(tmp_path / "bad").emit("dataset.report", dataset="d", images=1, excluded="?", buckets=None)
    append_line(bad / "events.jsonl", {"type": "warning"})
    assert "in progress" in page(bad).text


def test_images_that_are_gone_or_lie_elsewhere_are_left_out(folder, tmp_path):
    picture(tmp_path / "secret.png")
    media(folder, 4, "outside", "outside", file="../secret.png")
    media(folder, 4, "gone", "gone")
    next(folder.glob("validation_images/*gone*")).unlink()
    found = page(folder)
    assert len(found.of("article")) == 2 and "secret" not in found.source


def test_of_a_step_that_was_run_twice_the_last_attempt_counts(tmp_path):
    metrics(tmp_path, [1.0, 2.0, 3.0])
    metrics(tmp_path, [9.0], attempt=2, first=2)
    metrics(tmp_path, [5.0], attempt=1, first=2)  # a line of the first attempt that came late
    assert record.read(tmp_path).series("train_loss") == [(1, 1.0), (2, 9.0), (3, 3.0)]


def test_time_is_that_of_all_attempts_without_the_pauses(tmp_path):
    for attempt, second in ((1, 0), (1, 30), (2, 5000), (2, 5012)):
        line = dict(id="", run="", attempt=attempt, seq=1, type="log", severity="info", step=0, rank=0, job_id=None)
        time = f"2026-01-31T{10 + second // 3600}:{second % 3600 // 60:02}:{second % 60:02}.000Z"
        append_line(tmp_path / "events.jsonl", line | {"time": time, "data": {"message": ""}})
    assert record.read(tmp_path).seconds == 42


# ---- charts


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [(0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]), (1, 250, 9, [25 * i for i in range(1, 11)]), (-1, 1, 2, [-1, 0, 1])],
)
def test_ticks_are_round_numbers_within_the_plot(low, high, count, expected):
    assert ticks(low, high, count) == pytest.approx(expected)


def test_a_long_line_is_thinned_to_means():
    points = [(float(i), float(i % 2)) for i in range(1, 6001)]
    thin = thinned(points, 600)
    assert len(thin) == 600 and thin[0] == (5.5, 0.5) and thinned(points[:5]) == points[:5]


def test_smoothing_is_the_mean_of_a_twentieth_around():
    line = [(float(i), float(i)) for i in range(400)]
    assert smoothed(line)[200] == (200.0, 200.0) and smoothed(line)[0] == (0.0, 5.0)  # 0 to 10 at the end
    assert smoothed(line[:30]) == line[:30] and smoothed([]) == []


def test_few_outliers_of_a_raw_line_do_not_flatten_the_others():
    noisy = [(float(i), 0.5) for i in range(300)] + [(300.0, 90.0)]
    assert spread([Line(noisy, "raw")])[1] < 1 < 90 < spread([Line(noisy, "smooth")])[1]
    assert spread([Line([(1.0, 0.1), (2.0, 0.9)], "smooth")])[0] >= 0


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [0.0, 0.0], [-1.0, 3.0], [1e-7, 2e-7], [1e9, 3.0]])
def test_every_line_is_drawn_within_its_picture(values):
    svg = chart([Line(list(enumerate(values, 1)), "smooth")], label="Loss", width=400, height=200)
    (points,) = re.findall(r'points="([^"]*)"', svg)
    for x, y in (point.split(",") for point in points.split()):
        assert charts.LEFT <= float(x) <= 400 - charts.RIGHT and 0 <= float(y) <= 200 - charts.BOTTOM
    assert chart([Line([], "raw")], label="Loss", width=400, height=200) == ""


# ---- during a run


def test_the_page_is_made_anew_after_a_validation_and_at_every_end(folder):
    events = EventLog(folder)
    events.subscribe(report.ReportFile(folder, events))
    events.emit("step.done", loss=1.0)
    events.emit("checkpoint.saved", path="checkpoint-1")
    assert not (folder / report.FILE).exists()
    for kind in ("validation.finished", "run.finished", "run.stopped", "run.failed"):
        events.emit(kind, step=4, images=1, seconds=1.0, message="", exit_code=1, reason="")
        (folder / report.FILE).unlink()
    assert not list(folder.glob(".report*"))


def test_a_report_that_fails_is_a_warning_and_the_next_one_is_tried(folder):
    events, seen = EventLog(folder), []
    events.subscribe(report.ReportFile(folder, events))
    events.subscribe(seen.append)
    (folder / report.FILE).mkdir()  # cannot be replaced by a file
    events.emit("validation.finished", step=4, images=1)
    (warning,) = [event for event in seen if event.type == "warning"]
    assert "report.html could not be written" in warning.data["message"] and "simpletuner report" in warning.data["fix"]
    (folder / report.FILE).rmdir()
    events.emit("validation.finished", step=4, images=1)
    assert (folder / report.FILE).is_file()


# ---- the command


def run(*words):
    from click.testing import CliRunner

    from simpletuner.cli.main import program

    return CliRunner().invoke(program, ["report", *map(str, words)])


def test_the_command_names_the_page(folder):
    assert run(folder).output == f"{folder / report.FILE}\n"
    linked = (folder / report.FILE).read_text("utf-8")
    assert run(folder, "--embed").exit_code == 0 and (folder / report.FILE).read_text("utf-8") != linked


def test_the_command_says_what_is_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        error = run(path).exception
        assert isinstance(error, SimpleTunerError) and error.exit_code == 2 and error.problems[0].fix
    (tmp_path / "events.jsonl").touch()
    (tmp_path / report.FILE).mkdir()
    assert isinstance(run(tmp_path).exception, DiskError)


def test_a_linked_page_needs_neither_torch_nor_pictures(folder):
    code = (
        "import sys, pathlib\nfrom simpletuner.tracking import report\nreport.build(pathlib.Path(sys.argv[1]))\n"
        "print({'torch', 'PIL', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
