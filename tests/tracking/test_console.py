import contextlib
import io
import os

import pytest

from simpletuner.events import EventLog
from simpletuner.tracking.console import Console
from simpletuner.tracking.logfile import LogFile
from simpletuner.tracking.words import duration, size


class Screen(io.TextIOWrapper):
    """A text stream that says whether it is a terminal and remembers what was written."""

    def __init__(self, terminal=False, encoding="utf-8"):
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)
        self.terminal = terminal

    def isatty(self):
        return self.terminal

    @property
    def text(self):
        return self.buffer.getvalue().decode(self.encoding)


@pytest.fixture
def run(monkeypatch):
    """run(terminal) gives (event log, screen, console); run.now is the time."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    consoles = []

    def make(terminal=False, **options):
        screen, log = Screen(terminal, options.pop("encoding", "utf-8")), EventLog(None)
        console = Console(screen, clock=lambda: make.now, **options)
        log.subscribe(console)
        consoles.append(console)
        return log, screen, console

    make.now = 1000.0
    yield make
    for console in consoles:
        console.close()


def step(log, number, loss=0.5, **data):
    log.step = number
    log.emit("step.done", epoch=1, loss=loss, lr=1e-4, grad_norm=1.0, seconds=0.25, eta_seconds=75.0, **data)


def test_plain_lines_come_every_ten_seconds_and_one_percent_at_most(run):
    log, screen, _ = run()
    log.emit("run.started", total_steps=1000)
    for number in range(1, 101):
        run.now += 1
        step(log, number)
    lines = screen.text.splitlines()
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91]
    run.now += 100
    step(log, 101)
    for number in range(102, 112):  # a slow run: ten seconds have passed, one percent has not
        run.now += 15
        step(log, number)
    assert len(screen.text.splitlines()) == 12
    assert "\r" not in screen.text and "\x1b" not in screen.text


def test_the_training_line_tells_all_that_is_known(run):
    log, screen, _ = run(intervals={"checkpoint": 500, "validation": 100})
    log.emit("run.started", total_steps=1000)
    step(log, 440, vram_peak_bytes=11.2e9)
    assert screen.text.rstrip("\n").split("  ") == [
        "train", "440/1000", "loss 0.5000", "lr 1.00e-04", "0.25 s/step", "1:15 left", "peak 11.2 GB",
        "checkpoint in 60", "validation in 60",
    ]  # fmt: skip
    log, screen, _ = run()
    step(log, 1, total_steps=9, next_checkpoint=4)
    assert "1/9" in screen.text and "checkpoint in 4" in screen.text


def test_the_loss_is_smoothed_from_the_first_step_on(run):
    log, screen, _ = run()
    for number, loss in enumerate([1.0, 1.0, 0.0], 1):
        run.now += 60
        step(log, number, loss, total_steps=10)
    shown = [float(line.split("loss ")[1].split()[0]) for line in screen.text.splitlines()]
    assert shown[:2] == [1.0, 1.0] and 0.6 < shown[2] < 0.7


def test_every_phase_leaves_one_last_line(run):
    log, screen, _ = run()
    for done in (2, 50, 120):
        run.now += 3
        log.emit("cache.progress", dataset="cats", kind="text", done=done, total=120, hits=2)
    log.emit("cache.progress", dataset="cats", kind="vae", done=120, total=120, hits=120)
    log.stage("init_load_base_model", "load the model", "started")
    run.now += 72
    log.stage("init_load_base_model", "load the model", "done")
    for status, done in (("started", 0), ("progress", 2), ("done", 2)):
        log.stage("validation", "validation at step 5", status, current=done, total=2)
    assert screen.text.splitlines() == [
        "text cache cats  2/120  2 were there",
        "text cache cats  120/120  2 were there  in 6.0 s",
        "image cache cats  120/120  120 were there",
        "load the model",
        "load the model  done  in 1:12",
        "validation at step 5  0/2",
    ]


def test_what_happened_is_said_in_words(run):
    log, screen, _ = run()
    log.emit("dataset.report", dataset="cats", images=10, excluded={"too small": 2}, buckets={"512x512": 10}, report={})
    log.emit("checkpoint.saved", path="checkpoint-5", reason="interval", bytes=2_500_000, seconds=0.4)
    log.warn("x", "[bold]brackets[/bold] stay", "do this")
    log.emit("validation.finished", step=5, images=3, skipped=1, seconds=61.0)
    log.emit("export.done", path="output/pytorch_lora_weights.safetensors")
    log.emit("run.finished", step=5, seconds=3.0)
    assert screen.text.splitlines() == [
        "dataset cats: 10 images in 1 bucket, 2 left out",
        "saved checkpoint-5 (2 MB, 0.4 s)",
        "warning  [bold]brackets[/bold] stay (do this)",
        "validation at step 5: 3 images, 1 not made in 1:01",
        "finished after 5 steps in 3.0 s",
        "output/pytorch_lora_weights.safetensors",
    ]


def test_a_failure_ends_with_its_exit_code(run):
    log, screen, _ = run()
    log.emit("run.failed", "error", step=5, exit_code=6, kind="diverged", message="NaN in 4 steps", fix="lower lr")
    assert screen.text.splitlines() == ["error  NaN in 4 steps (lower lr)", "exit code 6"]


def test_a_terminal_gets_one_live_line_and_warnings_above_it(run):
    log, screen, console = run(terminal=True)
    for number in range(1, 4):
        run.now += 1
        step(log, number, total_steps=3000)
    log.warn("x", "look here")
    run.now += 1
    step(log, 4, total_steps=3000)
    text = screen.text
    assert text.count("\n") <= 2 and "┄" in text
    assert text.index("look here") < text.rindex("4/3000")
    console.close()
    assert screen.text.count("\x1b[?25l") == screen.text.count("\x1b[?25h") == 1  # the cursor is back


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_the_live_line_fits_every_width(run, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    log, _, console = run(terminal=True, intervals={"checkpoint": 500})
    step(log, 7, total_steps=3000)
    line = console._bar(console.phase).plain
    assert len(line) < max(width, 21) and line.startswith("train")
    assert ("checkpoint in 493" in line) == (width == 200) and ("loss" in line) == (width >= 60)


def test_no_color_and_a_dumb_terminal_are_respected(run, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    log, screen, _ = run(terminal=True)
    log.warn("x", "careful")
    assert "\x1b[33m" not in screen.text and "warning  careful" in screen.text
    monkeypatch.setenv("TERM", "dumb")
    log, screen, _ = run(terminal=True)
    step(log, 1, total_steps=3)
    assert "\x1b" not in screen.text and "\r" not in screen.text


def test_a_narrow_encoding_gets_ascii_bars(run):
    log, screen, console = run(terminal=True, encoding="ascii")
    step(log, 1, total_steps=2)
    log.warn("x", "शेर")
    assert "#####" in screen.text and "\\u0936" in screen.text and not console.closed


def test_a_closed_stream_ends_the_console_quietly(run):
    read, write = os.pipe()
    os.close(read)
    stream, log = os.fdopen(write, "w", buffering=1), EventLog(None)
    console = Console(stream)
    log.subscribe(console)
    log.warn("x", "nobody reads this")
    assert console.closed and log.subscribers == [console]
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_the_text_log_keeps_what_was_said_and_leaves_out_progress(tmp_path):
    log = EventLog(None)
    log.subscribe(LogFile(tmp_path / "logs"))
    log.stage("init_load_base_model", "load the model", "started")
    log.stage("init_load_base_model", "load the model", "progress", current=1, total=2)
    step(log, 1)
    log.warn("x", "look here")
    lines = (tmp_path / "logs/run.log").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["info    load the model: started", "warning look here"]


def test_numbers_read_like_numbers():
    assert [duration(s) for s in (0, 8.44, 59.9, 272, 7510)] == ["0.0 s", "8.4 s", "59.9 s", "4:32", "2:05:10"]
    assert [size(n) for n in (12, 2_500, 9_090_000, 11.2e9)] == ["12 B", "2 KB", "9 MB", "11.2 GB"]
