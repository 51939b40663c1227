"""The least of three ceilings."""

import pytest
from service.scheduling.throughput import Throughput

from encoders.memory.prediction import CPU
from service.memory.budget import Budget
from service.scheduling.limits import BatchLimits
from tests.support.shapes import image_shape, linear

SHAPE = image_shape("a", cost=linear(10, flops=1000))


def limits_of(*, by_memory: int, by_time: int, most: int | None = None, lanes: int = 1) -> BatchLimits:
    limits = BatchLimits(
        Budget(limit=10 * by_memory * lanes, overhead=CPU, lanes=lanes), Throughput(longest_s=1.0), most=most
    )
    limits.ran(SHAPE, by_time, 1.0)
    return limits


@pytest.mark.parametrize(
    ("by_memory", "by_time", "most", "ceiling"),
    [(5, 9, None, 5), (9, 5, None, 5), (9, 9, 5, 5), (5, 9, 7, 5), (9, 5, 7, 5)],
)
def test_the_least_of_memory_time_and_the_operator_s_word_is_the_ceiling(
    by_memory: int, by_time: int, most: int | None, ceiling: int
) -> None:
    assert limits_of(by_memory=by_memory, by_time=by_time, most=most).ceiling(SHAPE) == ceiling


def test_the_speed_of_what_ran_raises_the_ceiling() -> None:
    limits = limits_of(by_memory=50, by_time=5)
    limits.ran(SHAPE, 20, 1.0)
    assert limits.ceiling(SHAPE) == 20


def test_a_batch_is_full_when_memory_allows_no_larger_one_whatever_time_says() -> None:
    limits = limits_of(by_memory=5, by_time=2)
    assert not limits.is_full(SHAPE, 2)
    assert limits.is_full(SHAPE, 5)


def test_what_needs_more_than_its_share_of_memory_runs_alone() -> None:
    limits = limits_of(by_memory=5, by_time=5, lanes=2)
    assert not limits.runs_alone(SHAPE)
    assert limits.runs_alone(image_shape("a", 16, cost=linear(51)))
