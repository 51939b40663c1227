"""What is learnt from forwards that took more than predicted, by plain calls."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.memory.correction import Correction


def learnt(*forwards: tuple[int, int]) -> Correction:
    """From (predicted, peak) of forwards."""
    correction = Correction()
    for predicted, peak in forwards:
        correction.learn(predicted, peak)
    return correction


def test_nothing_is_expected_of_what_was_never_measured() -> None:
    correction = Correction()
    assert not correction
    assert correction.excess(10**9) == 0


def test_an_excess_of_one_size_is_the_same_up_to_twice_the_forward_and_beyond_it_in_proportion() -> None:
    correction = learnt((100, 150))
    assert correction
    assert [correction.excess(predicted) for predicted in (1, 100, 200)] == [50, 50, 50]
    assert correction.excess(400) == 200


def test_an_excess_that_is_the_same_for_small_forwards_and_large_does_not_grow() -> None:
    correction = learnt((100, 700), (1000, 1600))
    assert correction.excess(100_000) == 600


def test_an_excess_that_grows_with_the_forward_is_extrapolated() -> None:
    correction = learnt((10, 10 + 100 + 1), (110, 110 + 100 + 11))
    assert correction.excess(1010) == pytest.approx(100 + 101, abs=2)


def test_a_correction_fades_when_it_is_no_longer_needed_but_not_at_once() -> None:
    correction = learnt((100, 150))
    correction.learn(100, 100)
    assert 40 < correction.excess(100) < 50
    for _ in range(500):
        correction.learn(100, 100)
    assert correction.excess(100) == 0
    assert not correction


def test_a_small_forward_that_needed_less_says_nothing_of_a_large_one() -> None:
    correction = learnt((1000, 1500))
    for _ in range(500):
        correction.learn(10, 10)
    assert correction.excess(1000) == 500


def test_a_forward_that_took_less_raises_nothing() -> None:
    correction = learnt((100, 5))
    assert not correction
    assert correction.excess(100) == 0


def test_whether_a_forward_changed_anything_is_told() -> None:
    correction = Correction()
    assert correction.learn(100, 150)
    assert correction.learn(100, 200)
    assert not correction.learn(100, 200)
    assert correction.learn(100, 199)
    assert correction.learn(101, 201)


forwards = st.lists(st.tuples(st.integers(1, 10_000), st.integers(0, 30_000)), max_size=12)


@given(forwards, st.integers(1, 100_000), st.integers(1, 100_000))
def test_an_excess_never_falls_as_the_prediction_grows(
    measured: list[tuple[int, int]], first: int, second: int
) -> None:
    correction = learnt(*measured)
    small, large = sorted((first, second))
    assert 0 <= correction.excess(small) <= correction.excess(large)


@given(forwards, st.integers(1, 10_000), st.integers(0, 30_000), st.integers(1, 100_000))
def test_what_is_said_to_change_nothing_changes_nothing(
    measured: list[tuple[int, int]], predicted: int, peak: int, asked: int
) -> None:
    correction = learnt(*measured)
    before = correction.excess(asked)
    if not correction.learn(predicted, peak):
        assert correction.excess(asked) == before
