"""Whole runs with captions from a table, filtered and shuffled: encoded once, drawn again after a stop."""

import json

import small


def shuffled(config, pictures, table):
    """Lets the configuration's dataset take its captions from the table, in three orders each."""
    entry = {
        "id": "pictures", "type": "local", "instance_data_dir": str(pictures), "resolution": 64,
        "caption_strategy": "jsonl", "jsonl": {"path": str(table)},
        "caption_shuffle": {"enable": True, "count": 2, "position_start": 1}, "caption_dropout_probability": 0.2,
    }  # fmt: skip
    texts = {"id": "t", "type": "local", "dataset_type": "text_embeds", "default": True}
    texts["caption_filter_list"] = ["blurry, ", "s/dog/cat/"]
    (config.parent / "datasets.json").write_text(json.dumps([entry, texts]))
    return config


def test_a_run_stopped_and_resumed_equals_a_straight_one_and_encodes_nothing_anew(tmp_path, config, pictures):
    names = sorted(path.name for path in pictures.glob("*.png"))
    rows = [{"file_name": name, "text": f"dog, blurry, {n}, red, round"} for n, name in enumerate(names)]
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = small.tree(pictures)
    small.train(shuffled(config("straight", checkpoint_step_interval=3, max_train_steps=6), pictures, table))
    cached = sorted((tmp_path / "cache/text").rglob("*.safetensors"))
    assert len(cached) == 3 * len(rows) + 1  # and the empty one
    config = shuffled(config("stopped", checkpoint_step_interval=3, max_train_steps=6), pictures, table)
    small.stop_after(small.prepared(config), 3)
    small.train(config)
    assert small.differences(small.state(tmp_path / "straight", 6), small.state(tmp_path / "stopped", 6)) == []
    assert sorted((tmp_path / "cache/text").rglob("*.safetensors")) == cached
    assert small.tree(pictures) == before
