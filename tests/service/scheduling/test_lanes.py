"""The rules of lanes, by plain calls."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.scheduling.lanes import ENOUGH, Lanes


@pytest.mark.parametrize("busy", [0, 1])
@pytest.mark.parametrize(("waiting", "taken"), [(1, 1), (2, 1), (7, 4), (16, 8), (40, 20)])
def test_a_lane_takes_its_part_whether_the_other_is_free_or_at_work(waiting: int, taken: int, busy: int) -> None:
    lanes = Lanes(2)
    for lane in range(busy):
        lanes.enter(lane, now=0.0, alone=False)
    assert lanes.share(waiting, forward_s=1.0) == taken


def test_enough_is_for_all_lanes_together() -> None:
    assert [Lanes(number).enough(1.0) for number in (1, 2, 4)] == [ENOUGH, ENOUGH // 2, ENOUGH // 4]


def test_brief_forwards_run_one_after_the_other_with_enough_for_all_lanes() -> None:
    lanes = Lanes(2, brief_s=0.02)
    assert [lanes.abreast(forward_s) for forward_s in (0.019, 0.02)] == [1, 2]
    assert [lanes.enough(forward_s) for forward_s in (0.019, 0.02)] == [ENOUGH, ENOUGH // 2]
    assert [lanes.share(30, forward_s=forward_s) for forward_s in (0.019, 0.02)] == [30, 15]


def test_work_that_is_alone_takes_all_cores_and_other_work_a_lane_s_part() -> None:
    lanes = Lanes(4)
    assert lanes.enter(0, now=0.0, alone=True) == 1
    assert lanes.is_alone
    lanes.leave(0)
    assert lanes.enter(0, now=0.0, alone=False) == 4
    assert not lanes.is_alone


def test_the_only_lane_takes_all_cores_in_any_case() -> None:
    lanes = Lanes()
    assert lanes.share(1000, forward_s=1.0) == 1000
    assert lanes.enter(0, now=0.0, alone=False) == 1


def test_lanes_are_free_when_all_have_left() -> None:
    lanes = Lanes(2)
    assert lanes.busy == 0
    lanes.enter(0, now=0.0, alone=False)
    lanes.enter(1, now=0.0, alone=False)
    assert lanes.busy == 2
    assert lanes.leave(0)
    assert lanes.busy == 1
    assert lanes.leave(1)
    assert lanes.busy == 0


def test_a_lane_leaves_once() -> None:
    lanes = Lanes()
    assert not lanes.leave(0)
    lanes.enter(0, now=0.0, alone=False)
    assert lanes.leave(0)
    assert not lanes.leave(0)


def test_when_a_lane_began_is_known_while_it_is_at_work() -> None:
    lanes = Lanes(2)
    assert lanes.entered == {}
    lanes.enter(0, now=1.0, alone=False)
    lanes.enter(1, now=3.0, alone=False)
    assert lanes.entered == {0: 1.0, 1: 3.0}
    lanes.go_on(0, now=5.0)
    assert lanes.entered == {0: 5.0, 1: 3.0}
    lanes.leave(1)
    assert lanes.entered == {0: 5.0}


@given(number=st.integers(1, 5), data=st.data())
def test_the_next_work_is_for_the_free_lane_of_the_lowest_number(number: int, data: st.DataObject) -> None:
    lanes = Lanes(number)
    entered = data.draw(st.sets(st.integers(0, number - 1)))
    for lane in entered:
        lanes.enter(lane, now=0.0, alone=False)
    assert lanes.next == min(set(range(number)) - entered, default=number)
    left = data.draw(st.sets(st.sampled_from(sorted(entered)))) if entered else set()
    for lane in left:
        assert lanes.leave(lane)
    assert lanes.next == min(set(range(number)) - (entered - left), default=number)
