import contextlib

import pytest
import torch
from memory.blocks import equal, fail, forward, inputs, model, plain, same, step, trained
from torch.utils._pytree import tree_leaves

from simpletuner.errors import DiskError
from simpletuner.memory.activations import Parked
from simpletuner.memory.runner import Runner
from simpletuner.memory.stream import Streamed

ALL = range(7)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def expected():
    return step(model(), plain, *inputs())


def streamed(blocks, chosen=ALL, **more):
    residency = Streamed([block for block in blocks if block.index in chosen], CPU, **more)
    return residency, Runner(1, residency=residency)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("chosen", [[3], [0, 2, 5], ALL], ids=["one", "some", "all"])
@pytest.mark.parametrize("interval", [0, 1, 2])
def test_output_and_gradients_are_equal_to_the_bit(expected, chosen, depth, interval):
    blocks = model()
    residency, _ = streamed(blocks, chosen, depth=depth)
    runner = Runner(interval, residency=residency, store=Parked(CPU))
    for _ in range(2):
        assert equal(step(blocks, runner, *inputs()), expected)


def test_each_moved_block_is_copied_twice_a_step_and_the_last_ones_stay_at_the_turn():
    blocks = model(doubles=0, singles=7)
    residency, runner = streamed(blocks, [0, 2, 4, 6], depth=2)
    step(blocks, runner, *inputs())
    assert residency.copies == {0: 2, 1: 2, 2: 1, 3: 1}  # by place among the four
    step(blocks, runner, *inputs())
    assert residency.copies == {0: 4, 1: 4, 2: 2, 3: 2}


def test_one_slot_keeps_the_block_of_the_turn():
    blocks = model(doubles=0, singles=4)
    residency, runner = streamed(blocks, range(4), depth=1)
    step(blocks, runner, *inputs())
    assert residency.copies == {0: 2, 1: 2, 2: 2, 3: 1}


def test_sampling_copies_each_block_once_and_training_goes_on(expected):
    blocks = model()
    residency, runner = streamed(blocks)
    with torch.no_grad():
        assert torch.equal(forward(blocks, runner, *inputs()), expected[0])
    assert set(residency.copies.values()) == {1} and len(residency.copies) == 7
    assert equal(step(blocks, runner, *inputs()), expected)


def test_blocks_that_need_no_gradient_are_not_fetched_again():
    blocks = model(trained={4, 6})
    residency, runner = streamed(blocks, depth=1)
    assert equal(step(blocks, runner, *inputs()), step(model(trained={4, 6}), plain, *inputs()))
    assert residency.copies == {0: 1, 1: 1, 2: 1, 3: 1, 4: 2, 5: 1, 6: 1}  # a slot of a double holds two singles


def test_two_forward_passes_may_wait_for_one_backward_pass():
    def grads(blocks, runner):
        losses = [forward(blocks, runner, *inputs(seed=seed)).square().mean() for seed in range(2)]
        sum(losses).backward()
        return [leaf.grad for leaf in trained(blocks)]

    blocks = model()
    assert same(grads(blocks, streamed(blocks)[1]), grads(model(), plain))


def test_a_slot_that_was_left_holds_no_weights_any_more():
    """What makes a wrong order visible in every other test here."""
    blocks = model(doubles=0, singles=7)
    residency, _ = streamed(blocks, depth=1)
    first = residency.fetch(blocks[0])
    exact = blocks[0].weights["all"].matrix
    assert torch.equal(first["all"].matrix, exact)
    residency.done(blocks[0], again=False)
    assert not torch.equal(first["all"].matrix, exact)
    residency.fetch(blocks[1])
    residency.coming.clear()  # nothing is to follow
    residency.done(blocks[1], again=False)
    assert all(slot.weights["all"].scale.isnan().all() for slot in residency.ring.slots)


def test_an_early_look_at_the_next_block_never_takes_the_place_of_one_in_use(expected):
    blocks = model()
    residency, runner = streamed(blocks, depth=2)
    load, seen = residency._load, []

    def watched(slot, index):
        seen.append(any(other.in_use for other in slot.overlapping))
        load(slot, index)

    residency._load = watched
    step(blocks, runner, *inputs())
    assert seen and not any(seen)


def test_small_blocks_share_the_memory_of_large_ones():
    blocks = model()
    residency, _ = streamed(blocks, depth=2)
    double, single = (residency.layouts[place] for place in (0, 6))
    kinds = [sum(slot.layout is layout for slot in residency.ring.slots) for layout in (double, single)]
    assert residency.ring.memory.numel() == 2 * double.num_bytes
    assert kinds == [2, 2 * double.num_bytes // single.num_bytes] and kinds[1] > 2


def test_slots_keep_their_addresses():
    blocks = model(doubles=0, singles=5)
    residency, _ = streamed(blocks, depth=2)
    seen = []
    for _ in range(2):
        for index in range(5):
            seen.append(residency.fetch(blocks[index])["all"].codes.data_ptr())
            residency.done(blocks[index], again=False)
    assert len(set(seen)) == 2 and seen[:5] == seen[5:]


def test_copies_into_other_slots_do_not_disturb_a_block_in_its_backward_pass():
    """A reader's thread may copy at any time."""
    blocks = model(doubles=4, singles=0)
    residency, _ = streamed(blocks, depth=2)
    image, text, table = (tensor.requires_grad_() for tensor in inputs())
    y, z = blocks[0].function(residency.fetch(blocks[0]), blocks[0].factors(), image, text, table, None)
    for slot in residency.ring.slots:
        if not slot.in_use:
            slot.memory.fill_(1)
    (y.sum() + z.sum()).backward()
    assert text.grad.any() and all(leaf.grad.any() for leaf in trained(blocks[:1]))


def test_weights_move_into_one_arena_and_nowhere_else():
    blocks = model()
    before = [[leaf.clone() for leaf in tree_leaves(b.weights) if isinstance(leaf, torch.Tensor)] for b in blocks]
    residency, _ = streamed(blocks, [1, 5])
    start, size = residency.arena.bytes.data_ptr(), residency.arena.num_bytes
    for block, old in zip(blocks, before, strict=True):
        leaves = [leaf for leaf in tree_leaves(block.weights) if isinstance(leaf, torch.Tensor)]
        inside = [start <= leaf.data_ptr() < start + size for leaf in leaves]
        assert block.rehomed == (block.index in (1, 5)) and all(inside) == any(inside) == (block.index in (1, 5))
        assert all(torch.equal(leaf, was) for leaf, was in zip(leaves, old, strict=True))
        assert all(leaf.data_ptr() % 512 == start % 512 == 0 for leaf in leaves if any(inside))


def test_an_exception_inside_a_block_leaves_the_engine_usable(expected):
    blocks = model()
    residency, runner = streamed(blocks)
    fail(blocks[5], 1, 3)  # a forward pass, then a backward pass
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            step(blocks, runner, *inputs())
    assert equal(step(blocks, runner, *inputs()), expected)


@pytest.mark.parametrize("adapted", [None, set()], ids=["adapted", "frozen"])
def test_two_runners_share_one_ring(adapted):
    """As the modulations, before the blocks and with indices of their own."""

    def grads(first, second, runner, prologue):
        image, text, table = inputs()
        x = forward(first, prologue, image, text, table)
        forward(second, runner, x[:, 3:], x[:, :3], table).square().mean().backward()
        return [leaf.grad for leaf in trained([*first, *second])]

    first, second = model(0, 4, trained=adapted), model()
    residency = Streamed([*first, *second], CPU)
    runner, prologue = (Runner(n, residency=residency) for n in (1, 0))
    wanted = grads(model(0, 4, trained=adapted), model(), plain, plain)
    for _ in range(2):
        for leaf in trained([*first, *second]):
            leaf.grad = None
        assert same(grads(first, second, runner, prologue), wanted)
    assert all(count == 2 for place, count in residency.copies.items() if place < 4) == (adapted is not None)


def test_weights_that_are_trained_cannot_move():
    blocks = model()
    blocks[2].weights["gain"].requires_grad_()
    with pytest.raises(AssertionError, match="trained"):
        streamed(blocks)


def test_on_disk_the_numbers_are_the_same_and_no_file_is_left(expected, tmp_path):
    blocks = model()
    residency, runner = streamed(blocks, folder=tmp_path / "deep" / "er")
    for _ in range(2):
        assert equal(step(blocks, runner, *inputs()), expected)
    assert list((tmp_path / "deep" / "er").iterdir()) == []
    assert not residency.capturable and streamed(model())[0].capturable
    residency.close()


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DiskError, match="No space left") as error:
        streamed(model(), folder=tmp_path)
    assert error.value.exit_code == 7


def test_a_reader_that_fails_says_so_in_the_pass_and_may_be_mended(expected, tmp_path):
    blocks = model()
    residency, runner = streamed(blocks, folder=tmp_path)

    def torn(*_):
        raise OSError("torn")

    sound, residency.copier.straight.copy = residency.copier.straight.copy, torn
    with pytest.raises(OSError, match="torn"):
        step(blocks, runner, *inputs())
    residency.copier.straight.copy = sound
    with contextlib.suppress(OSError):  # what was under way beside it
        step(blocks, runner, *inputs())
    assert equal(step(blocks, runner, *inputs()), expected)
