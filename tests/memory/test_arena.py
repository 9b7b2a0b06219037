import pytest
import torch
from card import needs_card
from memory.blocks import Packed
from torch.utils._pytree import tree_leaves

from simpletuner.errors import DiskError
from simpletuner.memory.arena import Arena, Layout

WEIGHTS = {
    "packed": Packed(torch.arange(-3, 12, dtype=torch.int8).view(3, 5), torch.rand(3), 8),
    "more": [torch.rand(7, 3).to(torch.bfloat16), None, torch.rand(4).to(torch.float8_e4m3fn), torch.tensor(2.5)],
    "empty": torch.empty(0, 4),
    "strided": torch.rand(6, 4).t(),
}


def test_weights_of_every_kind_come_back_from_the_bytes():
    layout = Layout.of(WEIGHTS)
    memory = torch.zeros(layout.num_bytes, dtype=torch.uint8)
    views = layout.views(memory)
    for target, source in zip(tree_leaves(views), tree_leaves(WEIGHTS), strict=True):
        if isinstance(source, torch.Tensor):
            target.copy_(source)
    again = layout.views(memory.clone())
    assert type(again["packed"]) is Packed and again["packed"].bits == 8 and again["more"][1] is None
    for found, source in zip(tree_leaves(again), tree_leaves(WEIGHTS), strict=True):
        if isinstance(source, torch.Tensor):
            assert found.dtype == source.dtype and found.shape == source.shape
            assert torch.equal(found.float(), source.float())


def test_each_tensor_begins_at_a_multiple_of_512_bytes():
    layout = Layout.of(WEIGHTS)
    offsets = [leaf.offset for leaf in layout.leaves if isinstance(leaf, tuple)]
    assert all(offset % 512 == 0 for offset in offsets) and layout.num_bytes % 512 == 0 and len(offsets) == 7


def test_equal_trees_and_shapes_have_equal_layouts():
    other = {**WEIGHTS, "packed": Packed(torch.zeros(3, 5, dtype=torch.int8), torch.ones(3), 8)}
    assert Layout.of(WEIGHTS) == Layout.of(other)
    for change in (Packed(torch.zeros(3, 5, dtype=torch.int8), torch.ones(3), 4),
                   Packed(torch.zeros(5, 3, dtype=torch.int8), torch.ones(3), 8),
                   Packed(torch.zeros(3, 5, dtype=torch.uint8), torch.ones(3), 8)):  # fmt: skip
        assert Layout.of(WEIGHTS) != Layout.of({**WEIGHTS, "packed": change})


def test_an_arena_begins_at_a_page_and_has_the_bytes_that_were_asked_for():
    arena = Arena(12_345)
    assert arena.bytes.data_ptr() % 4096 == 0 and arena.bytes.numel() == arena.num_bytes == 12_345
    assert not arena.pinned and Arena(0).bytes.numel() == 0


def test_a_file_has_no_name_and_its_memory_outlives_the_arena(tmp_path):
    arena = Arena(5000, folder=tmp_path)
    memory = arena.bytes
    memory.fill_(7)
    arena.close()
    del arena
    assert list(tmp_path.iterdir()) == [] and memory.sum() == 35_000


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot be kept there"):
        Arena(10, folder=tmp_path / "file" / "below")


@needs_card
def test_pinned_memory_is_registered_to_the_byte_and_released():
    before = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
    arena = Arena(3 * 2**20 + 1, pin=True)
    assert arena.pinned and arena.bytes.is_pinned() and arena.bytes[-1:].is_pinned()
    assert torch.cuda.host_memory_stats().get("allocated_bytes.current", 0) == before  # none of PyTorch's own
    memory = arena.bytes
    arena.close()
    assert not memory.is_pinned() and not arena.pinned
    memory = Arena(2**20, pin=True).bytes  # the arena itself is gone at once
    assert not memory.is_pinned()
