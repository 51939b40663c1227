"""How many items a forward may take in its time."""

import pytest
from service.scheduling.throughput import Throughput

from tests.support.shapes import image_shape, linear, text_shape

IMAGES = image_shape("a", cost=linear(1, flops=1000))
LARGE = image_shape("a", 16, cost=linear(1, flops=4000))


def test_the_first_forward_takes_one_item() -> None:
    assert Throughput(longest_s=1.0).ceiling(IMAGES) == 1


def test_no_limit_of_time_is_none_from_the_second_forward_on() -> None:
    throughput = Throughput(longest_s=float("inf"))
    assert throughput.ceiling(IMAGES) == 1
    throughput.ran(IMAGES, 1, 1.0)
    assert throughput.ceiling(IMAGES) > 10**6


def test_a_ceiling_fills_the_time_and_no_more() -> None:
    throughput = Throughput(longest_s=2.0)
    throughput.ran(IMAGES, 10, 0.5)
    assert throughput.ceiling(IMAGES) == 40
    assert throughput.ceiling(LARGE) == 10


def test_an_item_that_takes_longer_than_allowed_runs_by_itself() -> None:
    throughput = Throughput(longest_s=0.1)
    throughput.ran(IMAGES, 1, 10.0)
    assert throughput.ceiling(IMAGES) == 1


def test_small_forwards_are_slow_so_the_best_speed_counts_and_fades() -> None:
    throughput = Throughput(longest_s=1.0)
    throughput.ran(IMAGES, 100, 1.0)
    throughput.ran(IMAGES, 1, 1.0)
    assert throughput.ceiling(IMAGES) == 90
    for _ in range(100):
        throughput.ran(IMAGES, 1, 0.5)
    assert throughput.ceiling(IMAGES) == 2


def test_images_and_texts_of_a_model_and_models_are_apart() -> None:
    throughput = Throughput(longest_s=1.0)
    throughput.ran(IMAGES, 100, 1.0)
    assert throughput.ceiling(text_shape("a", cost=linear(1, flops=1000))) == 1
    assert throughput.ceiling(image_shape("b", cost=linear(1, flops=1000))) == 1


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_a_clock_that_did_not_move_says_nothing(seconds: float) -> None:
    throughput = Throughput(longest_s=1.0)
    throughput.ran(IMAGES, 100, seconds)
    assert throughput.ceiling(IMAGES) == 1
