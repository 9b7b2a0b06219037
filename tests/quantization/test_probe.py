"""A kind that does not work here is refused, with those that do."""

from __future__ import annotations

import pytest
import torch
from quantization.conftest import CPU
from quantization.kinds import EVERY

from simpletuner.errors import HardwareError
from simpletuner.quantization import probe, quantize
from simpletuner.quantization.quantize import quantise


@EVERY
def test_every_kind_works_on_the_cpu(kind):
    probe.check({"base_model_precision": kind}, CPU)


def test_nothing_asked_for_is_nothing_probed(monkeypatch):
    monkeypatch.setattr(probe, "failure", lambda *_: pytest.fail("something was probed"))
    probe.check({}, CPU)


def test_a_failing_kind_is_named_with_its_reason_and_with_those_that_work(monkeypatch):
    def broken(weight):
        raise RuntimeError("no kernel image\nsecond line")

    monkeypatch.setitem(quantize.QUANTISERS, "fp8-compute", broken)
    with pytest.raises(HardwareError) as raised:
        probe.check({"base_model_precision": "fp8-compute"}, CPU)
    (problem,) = raised.value.problems
    assert raised.value.exit_code == 5 and problem.keys == ("base_model_precision",)
    assert (
        problem.message == "base_model_precision=fp8-compute does not work on this CPU: RuntimeError: no kernel image"
    )
    assert "int8-compute" in problem.fix and "fp8-compute" not in problem.fix


def test_of_text_encoders_no_kind_for_training_is_proposed(monkeypatch):
    monkeypatch.setattr(probe, "failure", lambda kind, device: "broken" if kind == "int8-bnb" else "")
    with pytest.raises(HardwareError) as raised:
        probe.check({"text_encoder_2_precision": "int8-bnb"}, CPU)
    assert "compute" not in raised.value.problems[0].fix


def test_wrong_numbers_are_a_failure(monkeypatch):
    plain = quantise("int8-compute", torch.eye(256)[:64])
    monkeypatch.setitem(quantize.QUANTISERS, "int8-compute", lambda weight: plain)
    assert probe.failure("int8-compute", CPU).startswith("its results are wrong by")
