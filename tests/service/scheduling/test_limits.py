"""How many items a forward may take: the least of three ceilings."""

import math
import weakref

import pytest

from encoders.memory.prediction import CPU
from service.memory.budget import Allowance, Budget
from service.memory.shape import ImageShape, Shape
from service.scheduling.limits import BatchLimits
from tests.support.shapes import image_shape, linear, text_shape

SHAPE = image_shape("a", cost=linear(10, flops=1000))
LARGE = image_shape("a", 16, cost=linear(10, flops=4000))


def limits_of(*, by_memory: int, by_time: int, most: int | None = None, lanes: int = 1) -> BatchLimits:
    budget = Budget(limit=10 * by_memory * lanes, overhead=CPU, lanes=lanes)
    limits = BatchLimits(budget, longest_s=1.0, most=most)
    limits.ran(SHAPE, by_time, 1.0)
    return limits


def in_time(longest_s: float, **options: int) -> BatchLimits:
    """Memory is no limit."""
    return BatchLimits(Budget(limit=2**60, overhead=CPU), longest_s=longest_s, **options)


def ceiling(limits: BatchLimits, shape: Shape = SHAPE) -> int:
    return limits.of(shape).ceiling


@pytest.mark.parametrize(
    ("by_memory", "by_time", "most", "expected"),
    [(5, 9, None, 5), (9, 5, None, 5), (9, 9, 5, 5), (5, 9, 7, 5), (9, 5, 7, 5)],
)
def test_the_least_of_memory_time_and_the_operator_s_word_is_the_ceiling(
    by_memory: int, by_time: int, most: int | None, expected: int
) -> None:
    assert ceiling(limits_of(by_memory=by_memory, by_time=by_time, most=most)) == expected


def test_the_speed_of_what_ran_raises_the_ceiling() -> None:
    limits = limits_of(by_memory=50, by_time=5)
    limits.ran(SHAPE, 20, 1.0)
    assert ceiling(limits) == 20


def test_a_forward_hangs_after_ten_times_its_usual_time_and_five_seconds() -> None:
    limits = in_time(1.0)
    limits.ran(SHAPE, 4, 8.0)
    assert limits.hangs_after_s(SHAPE, 4) == 80
    assert limits.hangs_after_s(SHAPE, 1) == 20
    limits.ran(SHAPE, 4, 0.01)
    limits.ran(SHAPE, 4, 0.01)
    assert limits.hangs_after_s(SHAPE, 4) == pytest.approx(80 * 0.9 * 0.9), "the slowest lately counts"
    for _ in range(100):
        limits.ran(SHAPE, 4, 0.01)
    assert limits.hangs_after_s(SHAPE, 4) == 5


def test_a_forward_that_hung_does_not_set_the_measure() -> None:
    limits = in_time(1.0)
    limits.ran(SHAPE, 1, 1.0)
    limits.ran(SHAPE, 1, 10_000.0)
    assert limits.hangs_after_s(SHAPE, 1) == 40


def test_a_first_forward_gets_a_minute_and_more_by_what_it_computes() -> None:
    limits = in_time(1.0)
    assert limits.hangs_after_s(SHAPE, 1) == 60
    assert limits.hangs_after_s(image_shape("a", cost=linear(10, flops=10**12)), 1) == 200, "of an unknown tower"
    limits.ran(SHAPE, 1, 1.0)  # 1000 a second
    assert limits.hangs_after_s(LARGE, 2) == 80, "of a tower whose pace is known"


@pytest.mark.parametrize("most", [None, 1])
def test_a_batch_is_full_when_memory_allows_no_larger_one_whatever_time_and_the_operator_say(most: int | None) -> None:
    limits = limits_of(by_memory=5, by_time=2, most=most)
    assert not limits.is_full(SHAPE, 2)
    assert not limits.is_full(SHAPE, 4)
    assert limits.is_full(SHAPE, 5)


def test_what_needs_more_than_its_share_of_memory_runs_alone() -> None:
    limits = limits_of(by_memory=5, by_time=5, lanes=2)
    assert not limits.of(SHAPE).runs_alone
    assert limits.of(image_shape("a", 16, cost=linear(51))).runs_alone


# Time.


def test_the_first_forward_takes_one_item() -> None:
    assert ceiling(in_time(1.0)) == 1


def test_no_limit_of_time_is_none_from_the_first_forward_on() -> None:
    limits = in_time(math.inf)
    assert ceiling(limits) > 10**6
    limits.ran(SHAPE, 1, 1.0)
    assert ceiling(limits) > 10**6
    assert ceiling(in_time(math.inf, most=3)) == 3


def test_a_ceiling_fills_the_time_and_no_more() -> None:
    limits = in_time(0.2)
    limits.ran(SHAPE, 100, 0.5)
    assert ceiling(limits) == 40
    assert ceiling(limits, LARGE) == 10


def test_an_item_that_takes_longer_than_allowed_runs_by_itself() -> None:
    limits = in_time(0.1)
    limits.ran(SHAPE, 1, 10.0)
    assert ceiling(limits) == 1


def test_small_forwards_are_slow_so_the_best_speed_counts_and_fades() -> None:
    limits = in_time(1.0)
    limits.ran(SHAPE, 100, 1.0)
    limits.ran(SHAPE, 1, 1.0)
    assert ceiling(limits) == 90
    for _ in range(100):
        limits.ran(SHAPE, 1, 0.5)
    assert ceiling(limits) == 2


def test_images_and_texts_of_a_model_and_models_are_apart() -> None:
    limits = in_time(1.0)
    limits.ran(SHAPE, 100, 1.0)
    assert ceiling(limits, text_shape("a", cost=linear(1, flops=1000))) == 1
    assert ceiling(limits, image_shape("b", cost=linear(1, flops=1000))) == 1


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_a_clock_that_did_not_move_says_nothing(seconds: float) -> None:
    limits = in_time(1.0)
    limits.ran(SHAPE, 100, seconds)
    assert ceiling(limits) == 1


def test_a_shape_without_operations_is_no_reason_to_divide_by_nothing() -> None:
    free = image_shape("a", cost=linear(1, flops=0))
    limits = in_time(0.1)
    assert ceiling(limits, free) == 1
    limits.ran(SHAPE, 1, 1.0)
    assert ceiling(limits, free) == 100


@pytest.mark.parametrize("longest_s", [1.0, math.inf])
def test_how_long_a_model_s_last_forward_took_is_told_whatever_its_shape(longest_s: float) -> None:
    limits = in_time(longest_s)
    assert limits.of(SHAPE).forward_s == 0.0
    limits.ran(SHAPE, 1, 3.0)
    limits.ran(LARGE, 5, 2.0)
    limits.ran(image_shape("b"), 1, 9.0)
    assert limits.of(SHAPE).forward_s == limits.of(LARGE).forward_s == 2.0
    limits.ran(text_shape("a", cost=linear(1)), 1, 0.5)
    assert limits.of(SHAPE).forward_s == 0.5


# What is kept.


def test_the_budget_is_asked_once_a_shape_as_long_as_nothing_changes() -> None:
    asked: list[Shape] = []

    class Asked(Budget):
        def allowance(self, shape: Shape) -> Allowance:
            asked.append(shape)
            return super().allowance(shape)

    budget = Asked(limit=1000, overhead=CPU)
    limits = BatchLimits(budget, longest_s=math.inf)
    for _ in range(3):
        assert ceiling(limits) == 100
        ceiling(limits, LARGE)
    assert asked == [SHAPE, LARGE]
    budget.hold("a", 500)
    for _ in range(3):
        assert ceiling(limits) == 50
    assert asked == [SHAPE, LARGE, SHAPE]


def test_allowances_are_kept_up_to_a_bound() -> None:
    limits = in_time(math.inf)
    shapes: list[weakref.ref[Shape]] = []
    for _ in range(10_002):
        shape = image_shape("a", cost=linear(10))
        ceiling(limits, shape)
        shapes.append(weakref.ref(shape))
    del shape
    assert sum(each() is not None for each in shapes) <= 10_001


def test_forwards_are_kept_short_while_another_shape_is_served_too() -> None:
    limits = in_time(2.0)
    limits.ran(SHAPE, 100, 1.0)
    assert ceiling(limits) == 200
    limits.ran(LARGE, 1, 0.04)
    assert ceiling(limits) == 20
    for _ in range(8):
        limits.ran(SHAPE, 20, 0.2)
    assert ceiling(limits) == 200, "the other has not been seen for a while"


def test_an_image_whose_forward_is_long_by_itself_is_served_all_the_same() -> None:
    limits = in_time(2.0)
    limits.ran(SHAPE, 1, 0.001)
    limits.ran(LARGE, 1, 5.0)
    limits.ran(LARGE, 1, 5.0)
    assert ceiling(limits, LARGE) >= 1


def test_without_a_limit_of_time_shapes_share_nothing() -> None:
    limits = in_time(math.inf)
    limits.ran(SHAPE, 1, 1.0)
    limits.ran(LARGE, 1, 1.0)
    assert ceiling(limits) > 10**6


def test_a_lane_may_ask_while_a_forward_of_another_ends() -> None:
    limits = in_time(1.0)

    class EndsWhenLookedAt(ImageShape):
        def __eq__(self, other: object) -> bool:
            limits.ran(SHAPE, 1, 1.0)
            return True  # so that the next one is looked at

        __hash__ = object.__hash__

    about = image_shape("a", cost=linear(10, flops=1000))
    limits.ran(EndsWhenLookedAt(about.model, about.size, about.outputs, about.cost), 1, 1.0)
    limits.ran(SHAPE, 1, 1.0)
    assert ceiling(limits) == 1
