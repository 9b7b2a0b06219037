"""The bundled example does what it promises: a visible style, on subjects of the set and on others, to the bit."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import program
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

NONE = slice(None, None, 11)  # of the prompts, for pictures at strength 0

pytestmark = pytest.mark.timeout(900)


def call(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """(the folder in which it ran, what it said) of the example, as it is shipped, from the shell."""
    folder = tmp_path_factory.mktemp("example")
    done = call("train", "--example", "nano", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stderr.splitlines()


@pytest.fixture(scope="module")
def run(trained) -> Path:
    return trained[0] / "simpletuner-results/nano"


def captions_of_set() -> list[str]:
    return sorted(path.read_text().strip() for path in (NANO / "pictures").glob("*.txt"))


def outside() -> list[str]:
    return [f"flat emoji of {subject}" for subject in OUTSIDE]


def pictures(folder: Path, prompts: list[str], *words: object) -> np.ndarray:
    """(num_prompts, 64, 64, 3) in [0, 1], in the order of the prompts, through `simpletuner generate`."""
    asked = [word for prompt in prompts for word in ("--prompt", prompt)]
    done = program.run("generate", *map(str, words), *asked, "--seed", "7", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    found = {}
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            found[image.info["prompt"]] = np.asarray(image.convert("RGB")) / 255
    return np.stack([found[prompt] for prompt in prompts])


@pytest.fixture(scope="module")
def samples(run: Path) -> dict[str, np.ndarray]:
    """Pictures of the base, of the LoRA and of the LoRA at half strength for both groups of prompts; at none, four."""
    prompts = captions_of_set() + outside()
    lora = ("--example", "nano", "--lora", run / RESULT)
    return {
        "base": pictures(run.parent / "base", prompts, "--example", "nano"),
        "whole": pictures(run.parent / "whole", prompts, *lora),
        "half": pictures(run.parent / "half", prompts, *lora, "--strength", 0.5),
        "none": pictures(run.parent / "none", prompts[NONE], *lora, "--strength", 0),
    }


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
    assert len(samples["none"]) == 4 and np.array_equal(samples["none"], samples["base"][NONE])
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


# ---- the last lines


@pytest.fixture(scope="module")
def last(trained) -> dict[str, list[str]]:
    """Those lines by name."""
    _, said = trained
    rows: dict[str, list[str]] = {}
    for line in said[said.index(next(line for line in said if line.startswith("report "))) :]:
        rows.setdefault(line[:13].strip() or list(rows)[-1], []).append(line[14:])
    return rows


def furthest(one: Path, other: Path) -> int:
    """The largest difference of two pictures, in steps of 8 bits."""
    with Image.open(one) as a, Image.open(other) as b:
        return int(abs(np.asarray(a).astype(int) - np.asarray(b)).max())


def test_the_last_lines_name_report_sheet_and_file(run, last):
    home = run.parents[1]
    assert list(last) == ["report", "before/after", "pictures", "in diffusers", "LoRA"]
    assert last["report"] == ["simpletuner-results/nano/report.html"]
    assert last["before/after"] == ["simpletuner-results/nano/sheets/step_250.jpg"]
    assert last["LoRA"] == [str(run / RESULT)]
    for name in ("report", "before/after", "LoRA"):
        assert (home / last[name][0]).stat().st_size > 1000, name


def test_the_line_for_pictures_gives_the_validation_image(run, last):
    home = run.parents[1]
    typed, *words = shlex.split(last["pictures"][0])
    assert typed == "simpletuner"
    done = call(*words, cwd=home)
    assert done.returncode == 0, done.stderr
    (made,) = done.stdout.splitlines()
    (kept,) = (run / "validation_images").glob("step_250_validation_0_*.png")
    assert (home / made).read_bytes() == kept.read_bytes()


def test_the_lines_for_diffusers_give_the_validation_image(run, last):
    """With the seed that a reader would add; diffusers' own arithmetic may round a pixel the other way."""
    home = run.parents[1]
    pasted = "\n".join(last["in diffusers"])
    assert "/nano/model" in pasted and "load_lora_weights" in pasted
    exact = pasted.replace(").images[0]", ", generator=__import__('torch').Generator().manual_seed(42)).images[0]")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    code = [sys.executable, "-c", f"{exact}\nimage.save('pasted.png')\n"]
    done = subprocess.run(code, cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (kept,) = (run / "validation_images").glob("step_250_validation_0_*.png")
    (base,) = (run / "benchmarks/base_model").glob("validation_*.png")
    assert furthest(home / "pasted.png", kept) <= 2 < furthest(home / "pasted.png", base)


def test_what_is_carried_stays_small():
    model, shown = (sum(p.stat().st_size for p in (NANO / n).rglob("*") if p.is_file()) for n in ("model", "pictures"))
    assert model <= 25_000_000 and shown <= 300_000
