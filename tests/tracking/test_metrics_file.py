import json
import math

from simpletuner.tracking.metrics import MetricsFile


def test_each_call_is_one_line_as_the_contract_says(tmp_path):
    metrics = MetricsFile(tmp_path, "20260131-100000-a1b2c3", 2)
    metrics(40, {"train_loss": 0.41})
    metrics(41, {"train_loss": math.nan, "epoch": 3})
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {"v": 1, "run": "20260131-100000-a1b2c3", "attempt": 2, "step": 40, "values": {"train_loss": 0.41}}
    assert second["values"] == {"train_loss": None, "epoch": 3}


def test_a_line_torn_by_a_power_cut_does_not_spoil_the_next(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"v":1,"ru')
    MetricsFile(tmp_path, "r", 1)(1, {"train_loss": 1.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])["step"] == 1
