"""What a resume makes of a changed dataset, and of checkpoints that the run turns its back on."""

import json

import pytest
import small

from simpletuner.errors import ConfigError


def dataset_keys(config, **keys):
    path = config.parent / "datasets.json"
    datasets = json.loads(path.read_text())
    path.write_text(json.dumps([datasets[0] | keys]))


@pytest.mark.parametrize(
    "change", [{"repeats": 3}, {"train_batch_size": 2}, {"loss_weight": 2.0}], ids=lambda c: next(iter(c))
)
def test_a_dataset_that_would_give_other_batches_is_refused(config, change):
    small.train(config(max_train_steps=4))
    again = config(max_train_steps=6)
    dataset_keys(again, **change)
    with pytest.raises(ConfigError, match="dataset pictures changed"):
        small.train(again)
    again = config(max_train_steps=6, allow_config_drift=True)
    dataset_keys(again, **change)
    run = small.train(again)
    assert any(
        "dataset pictures changed" in message for message in small.events(run.output_dir, "run.resumed")[-1]["drift"]
    )


def test_a_changed_picture_is_named(config, tmp_path):
    pictures = small.paint(tmp_path / "own")
    small.train(config(pictures=pictures, max_train_steps=4))
    (pictures / "picture 3.txt").write_text("another caption")
    with pytest.raises(ConfigError, match=r"changed: picture 3\.png"):
        small.train(config(pictures=pictures, max_train_steps=6))


def test_going_back_moves_later_checkpoints_aside_so_that_latest_follows_the_new_way(config):
    small.train(config(max_train_steps=8))
    small.train(config(max_train_steps=6, resume_from_checkpoint="checkpoint-4"))
    run = small.train(config(max_train_steps=7))
    assert (run.output_dir / "earlier-1/checkpoint-8/MANIFEST.json").exists()
    assert small.events(run.output_dir, "run.resumed")[-1]["from"] == "checkpoint-6"
