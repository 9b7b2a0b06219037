import sys

import pytest
from rules.cases import OUR_OWN, Case, speaks_only_when_broken

from simpletuner.rules import attention
from simpletuner.training.options import SAGE

KERNEL, MASKS = attention.KERNEL, attention.MASKS
PLAIN, SAID = {KERNEL: "diffusers"}, attention.sage_is_for_validation
CASES = [
    *(Case(25, SAID, {KERNEL: kernel}, kernel, (KERNEL,), PLAIN, "notice") for kernel in SAGE),
    Case(27, attention.masked_layers_use_sdpa, {KERNEL: "flash-attn-2", MASKS: True}, "takes no masks", (KERNEL, MASKS),
         {KERNEL: "flex"}, "notice"),
    Case(27, attention.masked_layers_use_sdpa, {KERNEL: "cudnn", MASKS: True}, "cudnn", (KERNEL, MASKS), {MASKS: False},
         "notice"),
    Case(OUR_OWN, attention.deterministic_kernels_repeat, {KERNEL: "cudnn", "deterministic": True},
         "cudnn does not repeat", (KERNEL, "deterministic"), {KERNEL: "flash-attn-2"}),
    Case(OUR_OWN, attention.deterministic_kernels_repeat, {KERNEL: "xformers", "deterministic": True}, "xformers",
         (KERNEL, "deterministic"), {"deterministic": False}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case, config):
    speaks_only_when_broken(case, config)


def test_sage_says_whether_it_is_installed(config, tmp_path, monkeypatch):
    chosen = config({KERNEL: "sageattention"})
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert "not installed" in attention.sage_is_for_validation(chosen).message
    (tmp_path / "sageattention").mkdir()
    (tmp_path / "sageattention/__init__.py").write_text("")
    assert "in validation only" in attention.sage_is_for_validation(chosen).message
