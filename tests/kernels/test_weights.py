import pytest
import torch
from packed import KINDS, nf4, packed
from torch.utils._pytree import tree_flatten, tree_unflatten

from simpletuner.kernels import weights
from simpletuner.kernels.weights import Compute8, Groups, Nf4, Plain, Rows, join

ALL = ["plain", *KINDS]
EXACT = {"rtol": 0.0, "atol": 0.0}


def storages(weight):
    return {part.untyped_storage().data_ptr() for part in weight if isinstance(part, torch.Tensor)}


def matrix(weight):
    return weight.dequantize(torch.float32)


@pytest.mark.parametrize("kind", ALL)
def test_rows_are_views_and_join_is_their_inverse(kind):
    parts = [packed(kind, 128, 256, seed) for seed in (1, 2)] + [packed(kind, 64, 256, 3)]  # whole nested blocks
    whole = join(parts)
    assert type(whole) is type(parts[0]) and whole.shape == (320, 256)
    torch.testing.assert_close(matrix(whole), torch.cat([matrix(part) for part in parts]), **EXACT)
    for part, (start, stop) in zip(parts, ((0, 128), (128, 256), (256, 320)), strict=True):
        again = whole.rows(start, stop)
        assert type(again) is type(part) and again.shape == part.shape
        assert storages(again) <= storages(whole)
        for found, source in zip(again, part, strict=True):
            assert torch.equal(found.float(), source.float()) if isinstance(source, torch.Tensor) else found == source


@pytest.mark.parametrize("kind", ALL)
def test_any_rows_of_any_join_have_the_right_values(kind):
    parts = [packed(kind, num_rows, 128, num_rows) for num_rows in (5, 12, 3)]
    whole = join(parts)
    expected = torch.cat([matrix(part) for part in parts])
    torch.testing.assert_close(matrix(whole), expected, **EXACT)
    for start, stop in ((0, 5), (5, 17), (3, 4), (17, 20), (0, 20)):
        part = whole.rows(start, stop)
        assert part.shape == (stop - start, 128)
        torch.testing.assert_close(matrix(part), expected[start:stop], **EXACT)


def test_only_equal_widths_kinds_and_bits_are_joined():
    for kind, other in (("int8", "float8"), ("int8", "compute int8"), ("4 bits", "2 bits")):
        with pytest.raises(AssertionError, match="unlike"):
            join([packed(kind, 4, 128), packed(other, 4, 128)])
    with pytest.raises(AssertionError, match="unlike"):
        join([packed("int8", 4, 128), packed("int8", 4, 256)])


def test_rows_of_a_plain_weight_pass_gradients_on():
    weight = Plain(torch.ones(4, 3, requires_grad=True))
    join([weight, weight.rows(1, 2)]).weight.sum().backward()
    assert weight.weight.grad[:, 0].tolist() == [1, 2, 1, 1]


@pytest.mark.parametrize("kind", ALL)
def test_a_weight_is_a_tree_and_keeps_its_type(kind):
    weight = packed(kind, 16, 128)
    leaves, spec = tree_flatten(weight)
    assert len(leaves) == len(weight) and type(tree_unflatten(leaves, spec)) is type(weight)
    assert tree_unflatten(leaves, spec).shape == (16, 128)


def test_types_of_equal_make_stay_apart():
    assert not isinstance(packed("compute int8", 2, 4), Rows) and not isinstance(packed("int8", 2, 4), Compute8)


def test_groups_read_low_bits_first():
    codes = torch.tensor([0x21, 0xF0] + [0] * 62, dtype=torch.uint8)
    row = matrix(Groups(codes, torch.tensor([2.0]), torch.tensor([-1.0]), 1, 128))[0]
    assert row[:5].tolist() == [1.0, 3.0, -1.0, 29.0, -1.0]
    codes = torch.tensor([0b11100100] + [0] * 31, dtype=torch.uint8)
    assert matrix(Groups(codes, torch.ones(1), torch.zeros(1), 1, 128))[0, :5].tolist() == [0, 1, 2, 3, 0]


def test_nf4_reads_high_bits_first():
    nested = torch.tensor([0.0]), torch.tensor([3.0])
    weight = Nf4(torch.tensor([0xF0, 0x7F], dtype=torch.uint8), torch.tensor([127], dtype=torch.uint8), *nested, 2, 2)
    assert matrix(weight).flatten().tolist() == [3.0, -3.0, 0.0, 3.0]


def test_rows_of_nf4_in_the_midst_of_a_nested_block_are_no_view_and_right():
    whole = nf4(40, 66)  # neither rows of whole blocks nor a whole last block
    part = whole.rows(7, 20)
    assert (part.block, part.nested) == (2, 1)
    torch.testing.assert_close(matrix(part), matrix(whole)[7:20], **EXACT)
    assert torch.equal(matrix(part.rows(2, 3)), matrix(whole)[9:10])


@pytest.mark.parametrize("shape", [(64, 64), (10, 34), (256, 192), (300, 130), (7, 3072)])
def test_nf4_is_what_bitsandbytes_unpacks(shape):
    functional = pytest.importorskip("bitsandbytes.functional")
    matrix_ = torch.randn(shape, generator=torch.Generator().manual_seed(5)) * 0.02
    codes, state = functional.quantize_4bit(matrix_, compress_statistics=True, quant_type="nf4")
    nested = state.state2.absmax, state.offset.expand_as(state.state2.absmax)
    weight = Nf4(codes.view(-1), state.absmax, *nested, *shape)
    expected = functional.dequantize_4bit(codes, state)
    torch.testing.assert_close(matrix(weight), expected, rtol=5e-7, atol=1e-9)


def test_the_dynamic_values_are_those_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.testing.assert_close(torch.tensor(weights.DYNAMIC), functional.create_dynamic_map(), rtol=2e-7, atol=0)


def test_the_weight_of_a_layer_is_what_it_packs_or_its_own():
    layer = torch.nn.Linear(4, 2)
    assert weights.weight_of(layer).weight is layer.weight
    layer.packed = packed("int8", 2, 4)
    assert weights.weight_of(layer) is layer.packed


@pytest.mark.parametrize("kind", KINDS)
def test_weights_put_into_one_room_are_joined_without_a_copy(kind):
    parts = [packed(kind, rows, 3 * 1024) for rows in (16, 32, 16)]
    room, start, there = weights.Room(64), 0, []
    for part in parts:
        there.append(room.take(part, start))
        start += part.shape[0]
    whole = weights.join(there)
    expected = torch.cat([part.dequantize(torch.float32) for part in parts])
    assert torch.equal(whole.dequantize(torch.float32), expected)
    assert all(
        torch.equal(a.dequantize(torch.float32), b.dequantize(torch.float32)) for a, b in zip(there, parts, strict=True)
    )
    copied = weights.join(parts)
    assert whole[0].data_ptr() == there[0][0].data_ptr() and copied[0].data_ptr() != parts[0][0].data_ptr()
