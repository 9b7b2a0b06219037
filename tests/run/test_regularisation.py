"""Regularisation sets: the target is what the base model itself would predict."""

import json

import small


def with_dataset_keys(config, **keys):
    """The configuration, with keys added to its only dataset."""
    path = config.parent / "datasets.json"
    datasets = json.loads(path.read_text())
    path.write_text(json.dumps([datasets[0] | keys]))
    return config


def test_the_loss_of_a_fresh_adapter_is_exactly_zero_and_nothing_is_learned(config):
    job = with_dataset_keys(config(max_train_steps=3, caption_dropout_probability=0.5), is_regularisation_data=True)
    run = small.train(job)
    values = small.metrics(run.output_dir)
    assert [v["train_loss"] for v in values.values()] == [0.0, 0.0, 0.0]
    assert [v["regularisation_loss"] for v in values.values()] == [0.0, 0.0, 0.0]
    assert all(v["grad_norm"] == 0 for v in values.values())


def test_an_ordinary_set_has_no_regularisation_loss(config):
    values = small.metrics(small.train(config(max_train_steps=2)).output_dir)
    assert all(v["train_loss"] > 0 and "regularisation_loss" not in v for v in values.values())
