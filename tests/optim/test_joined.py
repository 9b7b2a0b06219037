import torch
from torch.nn import Parameter

from simpletuner.optim.joined import rows, runs


def parameters(*shapes, dtype=torch.float32):
    return [Parameter(torch.randn(shape).to(dtype)) for shape in shapes]


def test_members_keep_their_values_and_show_the_flat_tensor():
    members = parameters((2, 3), (4,), (1, 5))
    before = [p.detach().clone() for p in members]
    (row,) = rows(members)
    assert all(a is b for a, b in zip(row.members, members, strict=True))
    assert all(torch.equal(p, value) for p, value in zip(members, before, strict=True))
    row.flat += 1
    assert all(torch.equal(p, value + 1) for p, value in zip(members, before, strict=True))
    (members[0].sum() * 2).backward()  # autograd knows them as before
    assert torch.equal(members[0].grad, torch.full((2, 3), 2.0)) and members[0].is_leaf


def test_a_row_has_one_dtype_and_no_more_numbers_than_it_may():
    found = rows(parameters((6,), (6,)) + parameters((6,), (6,), dtype=torch.bfloat16) + parameters((6,), (6,)), 20)
    assert [(len(row.members), row.flat.dtype) for row in found] == [(3, torch.float32), (2, torch.bfloat16)]
    assert [len(row.members) for row in rows(parameters(*[(6,)] * 5), 12)] == [2, 2]  # the fifth has no neighbour


def test_what_is_a_view_or_has_gaps_stays_where_it_is():
    whole = torch.randn(8)
    views = [Parameter(whole[:4]), Parameter(whole[4:])]
    turned = [Parameter(torch.randn(3, 2).t()), Parameter(torch.randn(3, 2).t())]
    assert rows(views + turned) == [] and views[1].data_ptr() == whole[4:].data_ptr()


def test_a_member_with_other_data_is_noticed():
    members = parameters((4,), (4,))
    (row,) = rows(members)
    assert row.holds(0) and row.holds(1)
    members[1].data = members[1].detach().clone()
    assert row.holds(0) and not row.holds(1)


def test_gradients_of_a_stretch_lie_side_by_side():
    members = parameters((2, 2), (3,), (2,))
    (row,) = rows(members)
    for number, p in enumerate(members):
        p.grad = torch.full_like(p, number)
    assert row.gradients(0, 3).tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert row.gradients(1, 3).tolist() == [1, 1, 1, 2, 2]
    assert row.stretch(torch.arange(9), 1, 2).tolist() == [4, 5, 6]


def test_runs_are_neighbours_with_one_key():
    assert list(runs([1, 1, None, 2, 1, 1, None])) == [(0, 2), (3, 4), (4, 6)]
    assert list(runs([None])) == list(runs([])) == []
