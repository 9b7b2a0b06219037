"""The bundled example does what it promises: a visible style, on subjects of the set and on others, to the bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import simpletuner

NANO = Path(simpletuner.__file__).parent / "nano"
COMMAND = [sys.executable, "-m", "simpletuner.cli.main"]
RESULT = "pytorch_lora_weights.safetensors"
OUTSIDE = (
    "a rabbit", "an elephant", "a turtle", "a rose", "a pineapple", "a doughnut", "a cup of coffee", "a bus",
    "a sailboat", "a bell", "a camera", "a teddy bear", "a crown", "a wolf", "a tulip", "a castle", "a helicopter",
    "a trumpet", "a duck", "a dolphin",
)  # fmt: skip

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("nano")]  # one training for all tests


def call(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example")
    done = call("train", "--example", "nano", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "simpletuner-results/nano"


def captions_of_set() -> list[str]:
    return sorted(path.read_text().strip() for path in (NANO / "pictures").glob("*.txt"))


def outside() -> list[str]:
    return [f"flat emoji of {subject}" for subject in OUTSIDE]


def pictures(folder: Path, prompts: list[str], *words: object) -> np.ndarray:
    """(num_prompts, 64, 64, 3) in [0, 1], in the order of the prompts, through `simpletuner generate`."""
    asked = [word for prompt in prompts for word in ("--prompt", prompt)]
    done = call("generate", *words, *asked, "--seed", 7, "--out", folder, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    found = {}
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            found[image.info["prompt"]] = np.asarray(image.convert("RGB")) / 255
    return np.stack([found[prompt] for prompt in prompts])


@pytest.fixture(scope="module")
def samples(run: Path) -> dict[str, np.ndarray]:
    """Pictures of the base, of the LoRA and of the LoRA at half strength, for both groups of prompts."""
    prompts = captions_of_set() + outside()
    lora = ("--example", "nano", "--lora", run / RESULT)
    made = {
        "base": pictures(run.parent / "base", prompts, "--example", "nano"),
        "whole": pictures(run.parent / "whole", prompts, *lora),
        "half": pictures(run.parent / "half", prompts, *lora, "--strength", 0.5),
        "none": pictures(run.parent / "none", prompts, *lora, "--strength", 0),
    }
    return made


def true_style() -> np.ndarray:
    """The pictures of the set, (24, 64, 64, 3) in [0, 1]."""
    return np.stack([np.asarray(Image.open(p).convert("RGB")) / 255 for p in sorted((NANO / "pictures").glob("*.png"))])


def from_the_inks(images: np.ndarray) -> np.ndarray:
    """How far each picture's colours are from those of the set, on average: (N,)."""
    colours = np.unique((true_style().reshape(-1, 3) * 32).round() / 32, axis=0)  # a grid of 1/32 is fine enough
    pixels = images.reshape(len(images), -1, 1, 3)[:, ::3]
    return np.stack([np.linalg.norm(part - colours, axis=-1).min(-1).mean() for part in pixels])


def from_the_tones(images: np.ndarray) -> np.ndarray:
    """How far each channel's values, sorted, are from those of the set's picture: how much of each tone there is."""
    wanted = np.sort(true_style().reshape(24, -1, 3), axis=1).mean(0)
    return np.abs(np.sort(images.reshape(len(images), -1, 3), axis=1) - wanted).mean((1, 2))


def warmth(images: np.ndarray) -> np.ndarray:
    """The share of clearly warm pixels: the inks are all cold."""
    return (images[..., 0] > images[..., 2] + 0.12).mean((1, 2))


STATISTICS = {"inks": from_the_inks, "tones": from_the_tones, "warmth": warmth}
GROUPS = {"in the set": slice(0, 24), "outside": slice(24, None)}


def way(statistic: str, images: np.ndarray, base: np.ndarray) -> float:
    """0 is the base, 1 the set."""
    measure = STATISTICS[statistic]
    start, end = measure(base).mean(), measure(true_style()).mean()
    return float((measure(images).mean() - start) / (end - start))


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize(("group", "least"), [("in the set", 0.8), ("outside", 0.5)])
def test_the_style_is_learned(samples, statistic, group, least):
    part = GROUPS[group]
    reached = way(statistic, samples["whole"][part], samples["base"][part])
    print(f"{statistic}, {group}: {reached:.2f} of the way")
    assert reached >= least


def silhouettes(images: np.ndarray) -> np.ndarray:
    ground = np.median(images[:, [0, 0, -1, -1], [0, -1, 0, -1]], axis=1)[:, None, None]
    return np.linalg.norm(images - ground, axis=-1) > 0.2  # (N, 64, 64) bool


@pytest.mark.parametrize("group", GROUPS)
def test_samples_still_follow_the_prompt(samples, group):
    base, whole = (silhouettes(samples[name][GROUPS[group]]).astype(float) for name in ("base", "whole"))
    both = np.einsum("ahw,bhw->ab", whole, base)
    either = whole.sum((1, 2))[:, None] + base.sum((1, 2))[None] - both
    nearest = (both / either).argmax(1)
    right = (nearest == np.arange(len(base))).mean()
    print(f"{group}: {right:.0%} of the shapes are those of their prompt")
    assert right >= 0.8  # half is asked for


def test_strength_0_is_the_base_and_one_half_lies_between(samples):
    assert np.array_equal(samples["none"], samples["base"])
    for statistic in STATISTICS:
        half, whole = (way(statistic, samples[name], samples["base"]) for name in ("half", "whole"))
        print(f"{statistic}: {half:.2f} of the way at half strength, {whole:.2f} at full")
        assert 0.05 < half < whole, statistic


@pytest.mark.slow
def test_the_same_again_even_when_killed(run, tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "train", "--example", "nano"], cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True
    )
    again = tmp_path / "simpletuner-results/nano"
    step = random.Random(time.time_ns()).randint(101, 200)
    log, deadline = again / "metrics.jsonl", time.monotonic() + 400
    while not (log.exists() and len(log.read_text().splitlines()) >= step):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    events = [json.loads(line) for line in (again / "events.jsonl").read_text().splitlines()]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (*map(int, children), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert not (again / RESULT).exists() and events
    done = call("train", "--example", "nano", cwd=tmp_path)
    assert done.returncode == 0 and "resum" in done.stdout + done.stderr, f"killed at step {step}"
    first, second = load_file(run / RESULT), load_file(again / RESULT)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first), f"killed at step {step}"


def test_all_that_the_end_promises_is_there(run):
    for name in (RESULT, "report.html", "sheets/step_250.jpg"):
        assert (run / name).stat().st_size > 1000, name


def test_what_is_carried_stays_small():
    model, shown = (sum(p.stat().st_size for p in (NANO / n).rglob("*") if p.is_file()) for n in ("model", "pictures"))
    assert model <= 25_000_000 and shown <= 300_000
