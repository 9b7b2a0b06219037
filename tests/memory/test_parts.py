import copy

import pytest
import torch
from card import needs_card
from memory.blocks import equal, inputs, model, plain, step
from tiny_flux import clip_tokenizer, t5_tokenizer, text_encoders, vae
from torch import nn

from simpletuner.memory import groups, parts
from simpletuner.memory.parts import aside, frozen, visiting
from simpletuner.memory.runner import Runner
from simpletuner.memory.stream import Streamed

CPU, META = torch.device("cpu"), torch.device("meta")  # meta: another device than RAM, on every machine


def part():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).requires_grad_(False)
    module.append(nn.Linear(4, 4))
    module[0].packed = (torch.ones(3), 5)
    return module


def test_what_is_frozen_counts_and_what_is_trained_does_not():
    module = part()
    found = {id(tensor) for tensor in frozen([module, module])}
    assert id(module[0].packed[0]) in found and id(module[1].running_mean) in found and id(module[0].bias) in found
    assert id(module[2].weight) not in found and len(found) == len(frozen([module])) == 1 + 4 + 3


@pytest.fixture
def elsewhere(monkeypatch):
    """Sending makes a copy in RAM, whatever device is named; returns how many were sent."""
    sent = []
    monkeypatch.setattr(parts, "_sent", lambda tensor, device: sent.append(device) or tensor.clone())
    return sent


def addresses(module):
    held = [*module.parameters(), *module.buffers(), module[0].packed[0]]
    return [tensor.data_ptr() for tensor in held]


def test_visitors_come_and_leave_without_being_copied_back(elsewhere):
    module = part()
    weight, before = module[0].weight, addresses(module)
    with visiting([module], META):
        inside = addresses(module)
        assert module[0].weight is weight and elsewhere == [META] * 8
        assert sum(a == b for a, b in zip(inside, before, strict=True)) == 2  # what is trained
    assert addresses(module) == before and len(elsewhere) == 8


def test_visitors_leave_after_an_error_too(elsewhere):
    module = part()
    before = addresses(module)
    with pytest.raises(MemoryError), visiting([module], META):
        raise MemoryError
    assert addresses(module) == before and elsewhere


@needs_card
def test_on_a_gpu_the_weights_leave_and_the_numbers_stay():
    device = torch.device("cuda")
    blocks = model(device=device)
    before = step(blocks, plain, *inputs(device))
    held = torch.cuda.memory_allocated()
    module = nn.Linear(512, 512, device=device).requires_grad_(False)
    with aside(module, blocks):
        assert torch.cuda.memory_allocated() < held and module.weight.device == CPU
        assert all(block.weights[next(iter(block.weights))] is not None for block in blocks)
    assert module.weight.device.type == "cuda" and equal(step(blocks, plain, *inputs(device)), before)


def test_blocks_that_wait_in_ram_anyway_stay_there():
    blocks = model()
    residency = Streamed(blocks[:2], CPU)
    homes = [block.rehomed for block in blocks]
    with aside(nn.Linear(2, 2), blocks):
        assert [block.rehomed for block in blocks] == homes
    assert equal(step(blocks, Runner(1, residency=residency), *inputs()), step(model(), plain, *inputs()))


def encoders():
    clip, t5 = text_encoders(len(clip_tokenizer()), len(t5_tokenizer()))
    return clip.requires_grad_(False), t5.requires_grad_(False)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
def test_text_encoders_in_groups_give_the_same_embeddings(depth, ahead):
    ids = torch.arange(12).view(1, 12)
    for module in encoders():
        with torch.no_grad():
            exact = module(ids)[0]
            streamed = groups.stream(module, CPU, depth=depth, ahead=ahead)
            for _ in range(2):
                assert torch.equal(module(ids)[0], exact)
        assert sum(streamed.copies.values()) == 2 * len(streamed.blocks) > 0


def test_a_vae_in_groups_encodes_and_decodes_the_same():
    module = vae().requires_grad_(False)
    plain = copy.deepcopy(module)
    streamed = groups.stream(module, CPU)
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latent = plain.encode(pixels).latent_dist.mean
        assert torch.equal(module.encode(pixels).latent_dist.mean, latent)
        assert torch.equal(module.decode(latent).sample, plain.decode(latent).sample)
    assert len(streamed.blocks) > 4


def test_outside_their_turn_layers_wait_in_ram():
    _, t5 = encoders()
    streamed = groups.stream(t5, CPU)
    start, size = streamed.arena.bytes.data_ptr(), streamed.num_bytes
    layer = t5.encoder.block[0]
    t5(torch.arange(4).view(1, 4))
    assert all(start <= p.data_ptr() < start + size for p in layer.parameters())
    assert not any(start <= p.data_ptr() < start + size for p in t5.get_input_embeddings().parameters())


def test_a_module_without_lists_moves_as_it_is():
    assert groups.stream(nn.Linear(2, 2).requires_grad_(False), CPU) is None
