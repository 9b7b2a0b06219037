"""A run that was interrupted ends as if it had not been, and goes on only from what is its own."""

import json
import os
import shutil
import signal

import pytest
import small
from small import differences, exact, state

from simpletuner.data.loader import Loader
from simpletuner.errors import ConfigError
from simpletuner.events import read_lines

VALIDATION = small.SAMPLES | {"validation_step_interval": 3}
FULL = {"model_type": "full", "lora_rank": None, "learning_rate": 1e-3}
VARIANTS = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "with dropout": {"lora_dropout": 0.3, "caption_dropout_probability": 0.5},
    "in batches of three": {"train_batch_size": 2, "gradient_accumulation_steps": 3, "lora_dropout": 0.3},
    "recomputed": {"gradient_checkpointing": True, "lora_dropout": 0.3},
    "validated": VALIDATION,
    "bf16": {"mixed_precision": "bf16", "optimizer": "adamw_bf16"},
    "fp16": {"mixed_precision": "fp16"},
    "full": FULL,
    "full, in bf16": FULL | {"mixed_precision": "bf16", "optimizer": "adamw_bf16"},
    "full, compensated": FULL | {"mixed_precision": "bf16", "optimizer": None, "optimizer_config": "rounding=kahan"},
    "full, recomputed and accumulated": FULL
    | {
        "mixed_precision": "bf16",
        "base_model_precision": "fp32",
        "gradient_checkpointing": True,
        "gradient_accumulation_steps": 2,
    },
}


@pytest.fixture
def met(monkeypatch):
    """What the trainer was handed: (ids, numbers, captions) of each batch."""
    batches, pull = [], Loader.next

    def noted(loader):
        batch = pull(loader)
        batches.append((batch.ids, batch.numbers, batch.captions))
        return batch

    monkeypatch.setattr(Loader, "next", noted)
    return batches


@pytest.mark.parametrize("variant", VARIANTS)
def test_ten_steps_equal_four_and_six_to_the_bit(config, met, variant):
    """Seven pictures, so that an epoch ends in between; the rate follows a cosine over the whole run."""
    changes = VARIANTS[variant] | {"lr_scheduler": "cosine", "lr_warmup_steps": 2}
    straight = small.train(config("straight", **changes))
    order = list(met)
    assert straight.progress.epoch > 1
    met.clear()
    small.stop_after(small.prepared(config("split", **changes)), 4)
    rest = small.train(config("split", **changes))
    assert met == order
    assert differences(state(straight.output_dir), state(rest.output_dir)) == []
    assert exact(straight.output_dir) == exact(rest.output_dir)
    assert [record["step"] for record in read_lines(rest.output_dir / "metrics.jsonl")] == list(range(1, 11))
    assert [event["step"] for event in small.events(rest.output_dir, "run.resumed")] == [4]


def test_validation_changes_no_weight(config):
    changes = {"lora_dropout": 0.3}
    with_images = small.train(config("with", **changes, **VALIDATION))
    without = small.train(config("without", **changes))
    assert list((with_images.output_dir / "validation_images").iterdir())
    assert differences(state(with_images.output_dir), state(without.output_dir)) == []
    assert exact(with_images.output_dir) == exact(without.output_dir)


@pytest.mark.parametrize("kind", [{"lora_dropout": 0.3}, FULL], ids=["lora", "full"])
def test_a_process_killed_in_the_middle_goes_on_to_the_bits_of_the_straight_run(config, forks, kind):
    changes = {"max_train_steps": 80, "lr_scheduler": "cosine", **kind}
    straight = small.train(config("straight", **changes))
    killed = config("killed", **changes)
    output = straight.output_dir.with_name("killed")
    status = forks.run(killed, number=signal.SIGKILL, after="killed/checkpoint-20")
    assert status == -signal.SIGKILL and not (output / "checkpoint-80").exists()
    small.train(killed)
    assert differences(state(straight.output_dir, 80), state(output, 80)) == []
    assert exact(straight.output_dir) == exact(output)
    assert small.events(output, "run.resumed")[0]["step"] >= 20


# ---- what a resume may change


def test_a_finished_run_ends_at_once(config, forks):
    path = config(max_train_steps=2)
    small.train(path)
    output = path.parent / "out"
    before, result = state(output, 2), (output / small.RESULT).stat()
    assert forks.run(path) == 0
    assert differences(before, state(output, 2)) == []
    assert (output / small.RESULT).stat().st_mtime_ns == result.st_mtime_ns
    assert [event["code"] for event in small.events(output, "warning")] == ["complete"]
    assert len(read_lines(output / "metrics.jsonl")) == 2


def test_a_changed_rank_is_refused_and_a_changed_rate_is_applied_with_a_notice(config, forks):
    small.train(config(max_train_steps=2))
    longer = config(max_train_steps=4, lora_rank=8)
    assert forks.run(longer) == 2
    output = longer.parent / "out"
    failure = small.events(output, "run.failed")[0]
    assert failure["exit_code"] == 2 and "lora_rank: 4 -> 8" in failure["message"]
    assert forks.run(config(max_train_steps=4, learning_rate=5e-3)) == 0
    said = [event["message"] for event in small.events(output, "log")]
    assert any(message.startswith("learning_rate: 0.01 -> 0.005 (applied from the next step)") for message in said)
    rates = {step: values["learning_rate"] for step, values in small.metrics(output).items()}
    assert rates == {1: 0.01, 2: 0.01, 3: 0.005, 4: 0.005}


@pytest.mark.parametrize("changes", [{"seed": 7}, {"train_batch_size": 2}, {"lora_dropout": 0.5}])
def test_a_change_that_ends_exactness_has_to_be_allowed(config, changes):
    small.train(config(max_train_steps=2))
    (key,) = changes
    with pytest.raises(ConfigError, match=key) as caught:
        small.train(config(max_train_steps=4, **changes))
    refused = next(problem for problem in caught.value.problems if key in problem.keys)
    assert caught.value.exit_code == 2 and "allow_config_drift" in refused.fix
    assert small.train(config(max_train_steps=4, allow_config_drift=True, **changes)).progress.step == 4


def test_an_edited_picture_has_to_be_allowed_and_is_the_only_one_encoded_again(config, tmp_path):
    pictures = small.paint(tmp_path / "pictures")
    output = small.train(config(pictures=pictures, max_train_steps=2)).output_dir
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    shutil.copyfile(pictures / "picture 0.png", pictures / "picture 1.png")
    with pytest.raises(ConfigError, match="dataset.*picture 1.png") as caught:
        small.train(config(pictures=pictures, max_train_steps=4))
    assert caught.value.exit_code == 2
    (pictures / "picture 1.png").write_bytes((pictures / "picture 0.png").read_bytes() + b"\n")  # other bytes
    small.train(config(pictures=pictures, max_train_steps=4, allow_config_drift=True))
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(set(after) - set(before)) == 1 and before.items() <= after.items()
    last = [event for event in small.events(output, "cache.progress") if event["kind"] == "vae"][-1]
    assert (last["total"], last["hits"], last["done"]) == (7, 6, 7)


def test_a_second_run_opens_neither_text_encoders_nor_vae(config, model, tmp_path):
    """Their weights are overwritten with zeros, under the same size and time: whoever reads them fails."""
    copy = shutil.copytree(model, tmp_path / "model")
    first = small.train(config("first", model=copy, max_train_steps=3))
    for part in ("text_encoder", "text_encoder_2", "vae"):
        for path in (copy / part).glob("*.safetensors"):
            stat = path.stat()
            path.write_bytes(bytes(stat.st_size))
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = small.train(config("second", model=copy, max_train_steps=3))
    done = {event["kind"]: event for event in small.events(second.output_dir, "cache.progress")}
    assert all(event["hits"] == event["total"] > 0 for event in done.values()) and set(done) == {"text", "vae"}
    assert differences(state(first.output_dir, 3), state(second.output_dir, 3)) == []


def test_the_overwritten_weights_of_that_test_do_fail_when_they_are_needed(config, model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "model")
    (weights,) = (copy / "vae").glob("*.safetensors")
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(Exception, match="vae"):
        small.train(config(model=copy, max_train_steps=1))


def test_a_drawn_seed_is_recorded_and_the_run_goes_on_with_it(config, forks):
    path = config(seed=-1, max_train_steps=2)
    output = path.parent / "out"

    def seed():
        return json.loads((small.newest(output) / "config.resolved.json").read_text())["seed"]

    assert forks.run(path) == 0
    drawn = seed()
    assert 0 <= drawn < 2**31
    assert forks.run(config(seed=-1, max_train_steps=4)) == 0
    assert small.newest(output).name == "checkpoint-4" and seed() == drawn
    straight = small.train(config("straight", seed=drawn, max_train_steps=4))
    assert differences(state(straight.output_dir, 4), state(output, 4)) == []
    assert forks.run(config(seed=-1, max_train_steps=2, resume_from_checkpoint="none")) == 0
    assert seed() != drawn  # one chance in two thousand million to be wrong
