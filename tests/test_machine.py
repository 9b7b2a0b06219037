"""What the machine is said to have. No GPU here: the driver's tool is a script that prints what a real one printed."""

from __future__ import annotations

import os
import sys

import pytest

from simpletuner import machine

PRINTED = """\
0, GPU-1c0ab1f2-aaaa, NVIDIA GeForce RTX 4090, 24564, 24210, 8.9, 570.86.16
1, GPU-77d0e3aa-bbbb, Tesla V100-SXM2-16GB, 16384, 16000, 7.0, 570.86.16
2, GPU-90aa11bb-cccc, Orin (nvgpu), [N/A], [N/A], 8.7, 540.4.0
"""
RTX, V100, ORIN = "NVIDIA GeForce RTX 4090", "Tesla V100-SXM2-16GB", "Orin (nvgpu)"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!{sys.executable}\nprint({PRINTED!r}, end='')\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


def test_gpus_are_read_from_the_driver(driver):
    first, second, third = machine.look({}).gpus
    assert (first.name, first.total_bytes, first.capability) == (RTX, 24564 * 2**20, (8, 9))
    assert first.has_bf16 and not second.has_bf16
    assert third.total_bytes == 0  # the driver does not say: shared with the system's memory


@pytest.mark.parametrize(
    ("visible", "names"),
    [("1", [V100]), ("GPU-90aa", [ORIN]), ("", []), ("-1", []), ("1,9,0", [V100]), ("2,0", [ORIN, RTX])],
)
def test_only_the_visible_ones_count_and_in_that_order(driver, visible, names):
    found = machine.look({"CUDA_VISIBLE_DEVICES": visible}).gpus
    assert [gpu.name for gpu in found] == names
    assert [gpu.index for gpu in found] == list(range(len(names)))


def test_a_driver_that_fails_is_no_gpu(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA-SMI has failed because it could not communicate with the driver.\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert machine.look({}).gpus == () and machine.look({}).device_name == "CPU"


def test_ram_cores_and_disk_are_those_of_the_system(tmp_path):
    here = machine.look()
    assert 0 < here.ram_free_bytes <= here.ram_bytes and 1 <= here.cores <= (os.cpu_count() or 1)
    assert machine.disk_free(tmp_path / "not" / "there" / "yet") == pytest.approx(machine.disk_free(tmp_path), rel=0.2)


@pytest.mark.gpu
@pytest.mark.skipif(not machine.look().gpus, reason="needs a CUDA device")
def test_the_driver_says_what_torch_says():
    import torch

    facts, gpu = torch.cuda.get_device_properties(0), machine.look().gpus[0]
    assert (gpu.name, gpu.capability) == (facts.name, (facts.major, facts.minor))
    assert gpu.total_bytes == pytest.approx(facts.total_memory, rel=0.03)
