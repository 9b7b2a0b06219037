"""What is kept of finished runs, and which of it a plan uses."""

from __future__ import annotations

import json
from dataclasses import replace

from simpletuner.plan import rates
from simpletuner.plan.rates import Rates, Setting
from simpletuner.plan.time import Span, time
from simpletuner.plan.work import Work

WORK = Work(step=100.0, image=10.0, text=4.0, latent=2.0)
HERE = Setting("NVIDIA H100 80GB HBM3", "krea", "bf16/bf16/lora", "1.049", 1)


def ended(output, *, attempt=1, seconds=0.5):
    """The files of a run: 2 s a text, 1 s a latent, 5 s an image."""
    output.mkdir(exist_ok=True)

    def event(type, clock, **data):
        return {"type": type, "attempt": attempt, "time": f"2026-01-31T10:00:{clock:06.3f}Z", "data": data}

    events = [
        event("cache.progress", 0, kind="text", dataset="text-embeds", done=1, total=4),
        event("cache.progress", 2, kind="text", dataset="text-embeds", done=2, total=4),
        event("cache.progress", 6, kind="text", dataset="text-embeds", done=4, total=4),
        event("cache.progress", 10, kind="vae", dataset="a", done=0, total=3),
        event("cache.progress", 13, kind="vae", dataset="a", done=3, total=3),
        event("cache.progress", 14, kind="vae", dataset="b", done=5, total=5),  # all were there
        event("validation.finished", 30, images=2, seconds=10.0),
        event("validation.finished", 40, images=0, seconds=0.1),
    ]
    (output / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    steps = [{"attempt": attempt, "step": n, "values": {"seconds_per_step": s}} for n, s in ((1, 9.0), (2, seconds))]
    (output / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
    return output


def test_a_run_leaves_its_rates(tmp_path):
    rates.learn(HERE, WORK, ended(tmp_path / "out"), 1)
    found, basis = rates.known(HERE)
    assert found == Rates(step=200.0, image=10 * 2 / 10.1, text=4 * 3 / 6, latent=2 * 3 / 3)
    assert basis == "measured here with these settings"


def test_another_attempt_is_not_counted(tmp_path):
    rates.learn(HERE, WORK, ended(tmp_path / "out", attempt=1), 2)
    assert rates.known(HERE)[0] == Rates()


def test_the_latest_run_with_the_same_settings_counts(tmp_path):
    rates.learn(HERE, WORK, ended(tmp_path / "out"), 1)
    rates.learn(HERE, WORK, ended(tmp_path / "out", seconds=0.25), 1)
    assert rates.known(HERE)[0].step == 400.0
    assert len(json.loads(rates.path().read_text())) == 1


def test_another_size_is_scaled_and_said_to_be(tmp_path):
    rates.learn(HERE, WORK, ended(tmp_path / "out"), 1)
    found, basis = rates.known(replace(HERE, resolution="0.262", batch=4))
    assert found.step == 200.0 and basis == "measured here at another size"


def test_another_device_flavour_or_precision_knows_nothing(tmp_path):
    rates.learn(HERE, WORK, ended(tmp_path / "out"), 1)
    for other in ({"device": "CPU"}, {"flavour": "dev"}, {"precision": "bf16/bf16/full"}):
        assert rates.known(replace(HERE, **other)) == (Rates(), "")


def test_a_file_that_holds_something_else_is_no_obstacle(tmp_path):
    rates.path().parent.mkdir(parents=True)
    for text in ("not JSON", "{}", '[1, {"device": "CPU"}]', '[{"step": "fast"}]'):
        rates.path().write_text(text)
        assert rates.known(HERE) == (Rates(), "")
    rates.learn(HERE, WORK, ended(tmp_path / "out"), 1)
    assert rates.known(HERE)[0].step == 200.0


def test_a_state_folder_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SIMPLETUNER_STATE_DIR", str(tmp_path / "file" / "below"))
    rates.learn(HERE, WORK, ended(tmp_path / "out"), 1)
    assert rates.known(HERE) == (Rates(), "")


def test_an_unmeasured_device_gets_a_range_or_nothing():
    low, high = rates.guess("NVIDIA H100 80GB HBM3", 16)
    assert low < 266e12 < high  # measured at 1024x1024 before blocks were compiled, in operations of plan.work
    assert rates.guess("CPU", 4)[1] == 2 * rates.guess("CPU", 2)[1]
    assert rates.guess("a card that nobody has seen", 16) is None


def test_a_card_is_known_by_its_own_name():
    assert rates.guess("NVIDIA RTX A4000", 1) is None  # no A40
    assert rates.guess("NVIDIA L40S", 1)[1] > rates.guess("NVIDIA L40", 1)[1] > rates.guess("NVIDIA L4", 1)[1]
    assert rates.guess("NVIDIA A100-SXM4-80GB", 1)[1] > rates.guess("NVIDIA A10", 1)[1]


def test_times_are_counts_of_work_over_rates(tmp_path):
    rates.learn(HERE, WORK, ended(tmp_path / "out"), 1)
    found = time(HERE, WORK, 16, steps=10, images=3, texts=1, latents=5)
    assert found.training == Span(5.0, 5.0) and found.step == Span(0.5, 0.5)
    assert found.caches.low == 2.0 + 5.0 and round(found.images.low, 2) == 15.15
    assert round(found.total.high, 2) == 27.15


def test_nothing_known_is_said():
    found = time(replace(HERE, device="AMD GPU"), WORK, 16, steps=10, images=0, texts=1, latents=0)
    assert found.total is None and found.training is None and "nothing is known of AMD GPU" in found.basis


def test_a_guess_for_a_gpu_counts_the_launches_of_small_models():
    wanted = replace(HERE, flavour="nano")
    small = Work(step=1e9, image=1e9, text=0, latent=0, step_blocks=14, image_blocks=140)
    guessed = time(wanted, small, 8, steps=10, images=1, texts=0, latents=0)
    assert guessed.step == Span(14 * rates.BLOCK[0], 14 * rates.BLOCK[1])
    assert guessed.training == Span(140 * rates.BLOCK[0], 140 * rates.BLOCK[1]) == guessed.images
