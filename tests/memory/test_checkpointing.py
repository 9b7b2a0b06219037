import pytest
import torch
from tiny_flux import transformer
from torch import nn

from simpletuner.memory.activations import Parked
from simpletuner.memory.checkpointing import recompute

BLOCKS = 5  # two double and three single ones


class Counter:
    """Counts how often the blocks run, by a layer inside each: recomputing passes by a block's own hooks."""

    def __init__(self, blocks):
        self.calls = 0
        for block in blocks:
            (block.norm1 if hasattr(block, "norm1") else block.norm).register_forward_pre_hook(self._count)

    def _count(self, *_):
        self.calls += 1


def flux():
    model = transformer(layers=(2, 3))
    return model, [*model.transformer_blocks, *model.single_transformer_blocks]


def forward(model, dropout_seed=0):
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(dropout_seed)
    side = 4  # packed tokens along an edge
    ids = torch.stack(torch.meshgrid(torch.arange(1), torch.arange(side), torch.arange(side), indexing="ij"), -1)
    return model(
        hidden_states=torch.randn(1, side * side, 64, generator=generator),
        encoder_hidden_states=torch.randn(1, 6, 32, generator=generator),
        pooled_projections=torch.randn(1, 16, generator=generator),
        timestep=torch.tensor([0.3]),
        img_ids=ids.reshape(-1, 3).float(),
        txt_ids=torch.zeros(6, 3),
        guidance=torch.tensor([1.0]),
        return_dict=False,
    )[0]


def gradients(interval, dropout=0.0, store=None):
    model, blocks = flux()
    if dropout:
        for block in blocks:
            block.proj_out = nn.Sequential(block.proj_out, nn.Dropout(dropout)) if hasattr(block, "proj_out") else None
    model.train()
    chosen = recompute(blocks, interval, store) if interval else []
    counter = Counter(blocks)
    output = forward(model)
    output.square().mean().backward()
    return output.detach(), {n: p.grad for n, p in model.named_parameters()}, len(chosen), counter.calls - BLOCKS


@pytest.fixture(scope="module")
def plain():
    return gradients(0)


@pytest.mark.parametrize(("interval", "expected"), [(0, 0), (1, 5), (2, 3), (3, 2)])
def test_gradients_are_equal_to_the_bit_and_every_nth_block_is_recomputed(plain, interval, expected):
    output, found, chosen, again = gradients(interval)
    assert torch.equal(output, plain[0])
    assert all(torch.equal(found[name], gradient) for name, gradient in plain[1].items() if gradient is not None)
    assert chosen == expected and again == expected


@pytest.mark.parametrize("interval", [1, 2])
def test_parked_inputs_give_equal_gradients(plain, interval):
    store = Parked(torch.device("cpu"))
    output, found, _, _ = gradients(interval, store=store)
    assert torch.equal(output, plain[0]) and store.num_bytes > 0
    assert all(torch.equal(found[name], gradient) for name, gradient in plain[1].items() if gradient is not None)


@pytest.mark.parametrize(("interval", "expected"), [(1, 57), (2, 29), (3, 19)])
def test_57_blocks_give_the_counts_of_the_contract(interval, expected):
    assert len(recompute([nn.Identity() for _ in range(57)], interval)) == expected


def test_dropout_inside_a_recomputed_block_repeats():
    plain, recomputed = gradients(0, dropout=0.5), gradients(1, dropout=0.5)
    assert torch.equal(plain[0], recomputed[0])
    assert all(torch.equal(recomputed[1][n], g) for n, g in plain[1].items() if g is not None)
    assert not torch.equal(plain[0], gradients(0)[0])


def test_sampling_recomputes_nothing():
    model, blocks = flux()
    recompute(blocks)
    counter = Counter(blocks)
    with torch.no_grad():
        assert forward(model).grad_fn is None
    assert counter.calls == BLOCKS


def test_only_the_inputs_of_blocks_are_kept():
    def kept(interval):
        model, blocks = flux()
        if interval:
            recompute(blocks, interval)
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel() if tensor.grad_fn else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            forward(model)
        return total

    assert kept(1) < kept(2) < kept(0)
