"""The same on a GPU: packed there, taken over from diffusers there, without a peak."""

from __future__ import annotations

import pytest
import torch
from card import CARD
from quantization.kinds import EVERY, parameters

from simpletuner.quantization import probe, store
from simpletuner.quantization.kinds import KINDS
from simpletuner.quantization.linear import PackedLinear
from simpletuner.quantization.packer import Packer
from simpletuner.quantization.quantize import quantise

pytestmark = CARD
GPU = torch.device("cuda")


def works(kind: str) -> None:
    if torch.cuda.get_device_capability() < KINDS[kind].capability:
        pytest.skip(f"{kind} needs compute capability {KINDS[kind].capability}")


@EVERY
def test_every_kind_that_the_card_has_works(kind):
    works(kind)
    assert probe.failure(kind, GPU) == ""


@EVERY
def test_it_is_packed_as_on_the_cpu(kind):
    w = torch.randn(256, 3072, generator=torch.Generator().manual_seed(5)).bfloat16() * 0.02
    there, here = (quantise(kind, w.to(device)).dequantize(torch.float32).cpu() for device in (GPU, "cpu"))
    step = (here - w.float()).abs().max()  # a code may be the next one where a quotient is near the middle
    assert (there - here).abs().max() <= 2.1 * step and (there - here).norm() < 0.2 * (here - w.float()).norm() + 1e-6


@pytest.mark.parametrize("kind", parameters(diffusers=True))
def test_what_diffusers_quantises_is_taken_over(kind, part):
    works(kind)
    made = part(dtype=torch.bfloat16)
    packer = Packer(kind, torch.bfloat16, via="pipeline")
    packer.load(made, GPU)
    assert packer.num_packed == sum(isinstance(m, PackedLinear) for m in made.module.modules()) >= 20
    direct = part(dtype=torch.bfloat16)
    Packer(kind, torch.bfloat16).load(direct, GPU)
    for path, layer in store.packed_layers(made.module).items():
        own = store.packed_layers(direct.module)[path].packed.dequantize(torch.float32)
        theirs = layer.packed.dequantize(torch.float32)
        assert layer.packed[0].is_cuda and (theirs - own).norm() < 0.05 * own.norm()


@pytest.mark.parametrize("via", ["auto", "cpu"])
def test_the_result_lies_on_the_gpu_wherever_it_was_packed(via, part, tmp_path):
    made, again = part(dtype=torch.bfloat16), part(dtype=torch.bfloat16)
    for module in (made, again):
        Packer("int8-compute", torch.bfloat16, via=via, root=tmp_path).load(module, GPU)
        assert all(tensor.is_cuda for tensor in store.contents(module.module).values())


def test_packing_holds_one_matrix_beside_the_result():
    w = torch.randn(12288, 3072, device=GPU, dtype=torch.bfloat16)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    packed = quantise("int8-compute", w)
    held = sum(part.nbytes for part in packed)
    assert torch.cuda.max_memory_allocated() - before - held < 500e6
