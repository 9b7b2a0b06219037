import pytest

from simpletuner.memory import budget

GIB = 2**30


@pytest.mark.parametrize("count", [0, 1, 2, 5, 10, 28, 56, 57])
def test_moved_blocks_are_that_many_and_evenly_spaced(count):
    chosen = sorted(budget.moved(57, count))
    assert len(chosen) == count and all(0 <= index < 57 for index in chosen)
    gaps = [after - before for before, after in zip(chosen, chosen[1:], strict=False)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    if count in (1, 2, 5):  # as much room before the first as behind the last
        assert abs(chosen[0] - (56 - chosen[-1])) <= 1


def test_more_than_there_are_cannot_move():
    with pytest.raises(ValueError, match="58 of 57"):
        budget.moved(57, 58)


SIZES = [2 * GIB] * 3 + [GIB] * 6  # 12 GiB, large ones first


def test_the_ring_holds_the_largest_block_that_moves():
    assert budget.ring_bytes(SIZES, {1, 5}, depth=3) == 6 * GIB and budget.ring_bytes(SIZES, {5}, depth=2) == 2 * GIB
    assert budget.ring_bytes(SIZES, set(), depth=2) == 0
    assert budget.saved_bytes(SIZES, 9, depth=2) == 12 * GIB - 4 * GIB and budget.saved_bytes(SIZES, 0, depth=2) == 0


@pytest.mark.parametrize("available", [40, 21, 20, 18, 17, 16, 15, 13, 12])
def test_the_fewest_that_fit_leave_a_twentieth(available):
    needed = 19 * GIB  # 12 of weights and 7 of everything else

    def fits(count):
        return needed - budget.saved_bytes(SIZES, count, depth=2) <= 0.95 * available * GIB

    found = budget.fewest(SIZES, needed, available * GIB)
    assert found == next((count for count in range(10) if fits(count)), None)
    assert (found is None) == (available == 11 or not any(map(fits, range(10))))


def test_nothing_moves_where_everything_fits_and_none_is_enough_where_the_rest_is_too_much():
    assert budget.fewest(SIZES, 19 * GIB, 20 * GIB) == 0  # 19 of 19
    assert budget.fewest(SIZES, 19 * GIB, int(19.9 * GIB)) not in (0, None)
    assert budget.fewest(SIZES, 19 * GIB, 11 * GIB) is None  # 7, and 4 of slots


def test_what_crosses_the_bus_and_what_a_step_waits_for_it():
    assert budget.transferred_bytes(SIZES, {0, 4, 8}, depth=1) == (4 + 2 + 1) * GIB
    assert budget.stall_seconds(int(11.8e9), 0.0) == pytest.approx(0.472)  # half of an 8-bit model, twice
    assert budget.stall_seconds(int(11.8e9), 0.4) == pytest.approx(0.072)
    assert budget.stall_seconds(int(11.8e9), 1.0) == 0


def test_the_system_keeps_two_fifths_of_its_ram():
    assert budget.pinnable(100 * GIB) == 60 * GIB and budget.pinnable(0) == 0
