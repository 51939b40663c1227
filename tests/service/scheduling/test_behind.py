"""What may be begun behind a batch that runs, by plain calls."""

import pytest

from service.memory.shape import Shape
from service.scheduling.behind import may_follow
from service.scheduling.queue import Line, Queue
from tests.support.shapes import image_shape, text_shape

IMAGES, TEXTS = image_shape(), text_shape()


def line_of(items: int, shape: Shape = IMAGES, *, deadline: float = float("inf")) -> Line[int]:
    queue: Queue[int] = Queue()
    for item in range(items):
        queue.put(shape, item, now=0.0, deadline=deadline)
    line = queue.next_line()
    assert line is not None
    return line


@pytest.mark.parametrize(("waiting", "follows"), [(1, False), (2, False), (3, True), (4, True)])
def test_a_batch_as_large_as_the_one_that_runs_may_follow_and_a_smaller_one_is_left_to_grow(
    waiting: int, follows: bool
) -> None:
    assert may_follow(line_of(waiting), running=3, ceiling=8) is follows


def test_a_batch_that_cannot_grow_may_follow_any() -> None:
    assert may_follow(line_of(2), running=100, ceiling=2)
    assert not may_follow(line_of(1), running=100, ceiling=2)


def test_texts_never_follow() -> None:
    assert not may_follow(line_of(4, TEXTS), running=1, ceiling=4)


def test_images_past_their_deadline_are_counted_for_nobody_has_looked_at_them() -> None:
    assert may_follow(line_of(3, deadline=0.0), running=3, ceiling=8)
