"""The plan of an epoch: nobody is missed, ranks agree, and it is the same everywhere."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.data.sampling import (
    Pool,
    batches_per_epoch,
    num_batches,
    plan_epoch,
    rank_slice,
    smallest_repeats,
)


def pool(id="d", sizes=(7,), batch=4, repeats=0, probability=1.0) -> Pool:
    buckets = {f"b{k}": [f"{id}/{k}-{n}" for n in range(size)] for k, size in enumerate(sizes)}
    return Pool(id, buckets, batch, repeats, probability)


def test_seven_images_at_batch_four_are_two_batches_and_one_double():
    plan = plan_epoch([pool()], seed=1, epoch=1)
    assert len(plan.batches) == 2 and plan.doubles == 1
    assert set(Counter(id for batch in plan.batches for id in batch.ids).values()) <= {1, 2}
    assert len({id for batch in plan.batches for id in batch.ids}) == 7


def test_ten_lonely_images_are_ten_batches_and_thirty_doubles():
    plan = plan_epoch([pool(sizes=(1,) * 10)], seed=1, epoch=1)
    assert len(plan.batches) == 10 and plan.doubles == 30
    assert batches_per_epoch([pool(sizes=(1,) * 10)]) == 10


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=3), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(0, 2),
    st.integers(1, 8),
    st.sampled_from(["auto-weighting", "uniform"]),
)
def test_every_image_is_met_1_plus_repeats_times_plus_top_ups(sets, batch, repeats, ranks, sampling):
    pools = [pool(f"d{i}", sizes, batch, repeats) for i, sizes in enumerate(sets)]
    plan = plan_epoch(pools, seed=3, epoch=2, ranks=ranks, sampling=sampling)
    assert len(plan.batches) == batches_per_epoch(pools, ranks)
    assert plan.batches_of == {p.id: num_batches(p, ranks) for p in pools}
    met = Counter(id for wide in plan.batches for id in wide.ids)
    everyone = {id for p in pools for ids in p.buckets.values() for id in ids}
    assert set(met) == everyone and min(met.values()) >= 1 + repeats
    assert sum(met.values()) == len(everyone) * (1 + repeats) + plan.doubles
    for wide in plan.batches:
        owner = next(p for p in pools if p.id == wide.dataset)
        assert set(wide.ids) <= set(owner.buckets[wide.bucket]) and len(wide.ids) == batch * ranks
        shares = [list(rank_slice(wide, 100, rank, ranks)) for rank in range(ranks)]
        assert {len(share) for share in shares} == {batch}
        together = sorted((number, id) for share in shares for id, number in share)
        assert together == [(100 + i, id) for i, id in enumerate(wide.ids)]


def test_each_pass_meets_each_image_once():
    found = plan_epoch([pool(sizes=(8,), batch=8, repeats=4)], seed=1, epoch=1)
    assert all(len(set(batch.ids)) == 8 for batch in found.batches)


def test_seed_and_epoch_change_the_order_and_nothing_else_does():
    pools = [pool(sizes=(30, 20)), pool("e", sizes=(9,))]
    first = plan_epoch(pools, seed=1, epoch=1)
    assert first.digest == plan_epoch(pools, seed=1, epoch=1).digest
    shuffled = [Pool(p.id, {k: p.buckets[k][::-1] for k in reversed(p.buckets)}, p.batch_size) for p in pools]
    assert first.digest == plan_epoch(shuffled, seed=1, epoch=1).digest
    others = {plan_epoch(pools, seed=s, epoch=e).digest for s, e in ((2, 1), (1, 2))}
    assert len(others | {first.digest}) == 3


def test_the_plan_is_this_one_on_every_machine_and_version():
    plan = plan_epoch([pool(sizes=(7, 3), repeats=1), pool("e", sizes=(5,))], seed=42, epoch=1, ranks=2)
    assert plan.digest == "d505cc88413e269338e64238ef5f16bf1ceaaa1f78b13c1c197887c23956ec25"


def test_weights_shape_the_order_only():
    pools = [pool("rare", (100,), 1, probability=0.01), pool("often", (100,), 1)]
    plan = plan_epoch(pools, seed=1, epoch=1)
    early = Counter(batch.dataset for batch in plan.batches[:100])
    assert early["rare"] < 10 and plan.batches_of == {"rare": 100, "often": 100}


@pytest.mark.parametrize(("images", "need", "repeats"), [(3, 8, 2), (25, 32, 1), (8, 8, 0), (1, 4, 3)])
def test_smallest_repeats(images, need, repeats):
    assert smallest_repeats(images, need) == repeats


def test_a_large_plan_is_quick():
    pools = [Pool("d", {f"b{k}": [f"d/{k}/{n}" for n in range(1000)] for k in range(100)}, 4)]
    start = time.process_time()
    assert len(plan_epoch(pools, seed=1, epoch=1).batches) == 25_000
    assert time.process_time() - start < 2


def test_planning_needs_no_torch():
    code = "import sys; import simpletuner.data.sampling; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
