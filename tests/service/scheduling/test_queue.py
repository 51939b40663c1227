"""The order of service, by plain calls."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.contract.values import Outputs, TokenKind
from service.memory.shape import Shape
from service.scheduling.queue import Queue, Taken
from tests.support.shapes import image_shape, text_shape

SMALL, LARGE = image_shape("a", 32), image_shape("a", 64)
TOKENS = image_shape("a", 32, Outputs(tokens=TokenKind.HIDDEN))
OTHER = image_shape("b", 32)
TEXT = text_shape("a")
SHAPES: list[Shape] = [SMALL, LARGE, TOKENS, OTHER, TEXT]
NEVER = float("inf")


def queue_of(*shapes: Shape, deadline: float = NEVER) -> Queue[int]:
    """Items 0, 1, 2, ... that arrived at that second; their tickets are the same numbers."""
    queue: Queue[int] = Queue()
    for number, shape in enumerate(shapes):
        queue.put(shape, number, now=float(number), deadline=deadline)
    return queue


def take(queue: Queue[int], most: int = 8, now: float = 0.0) -> Taken[int]:
    line = queue.next_line()
    assert line is not None
    return queue.take(line, most=most, now=now)


def batch(queue: Queue[int], most: int = 8, now: float = 0.0) -> list[int]:
    return [waiting.item for waiting in take(queue, most, now).batch]


def batches(queue: Queue[int], most: int = 8) -> list[list[int]]:
    """All that waits, batch by batch."""
    taken = []
    while queue.size:
        taken.append(batch(queue, most))
    return taken


def test_equal_shapes_find_each_other_in_mixed_traffic() -> None:
    assert batches(queue_of(SMALL, LARGE, SMALL, TEXT, SMALL)) == [[0, 2, 4], [1], [3]]


def test_shapes_of_equal_values_that_are_two_objects_are_two_shapes() -> None:
    assert batches(queue_of(image_shape("a", 32), image_shape("a", 32))) == [[0], [1]]


def test_an_empty_queue_has_no_next_line() -> None:
    assert queue_of().next_line() is None


def test_what_is_left_of_a_line_is_told_and_served_by_its_oldest_item() -> None:
    queue = queue_of(SMALL, SMALL, SMALL, LARGE, LARGE)
    first = take(queue, 2)
    assert (first.shape, [each.item for each in first.batch], first.left) == (SMALL, [0, 1], 1)
    last_of_it = take(queue, 2)
    assert ([each.item for each in last_of_it.batch], last_of_it.left) == ([2], 0)
    assert batches(queue, 1) == [[3], [4]]


def test_an_item_remembers_when_it_came() -> None:
    queue = queue_of(LARGE, SMALL, LARGE)
    assert [(each.ticket, each.since) for each in take(queue).batch] == [(0, 0.0), (2, 2.0)]


def test_a_discarded_item_is_in_no_batch() -> None:
    queue = queue_of(SMALL, SMALL, SMALL)
    assert queue.discard(1)
    assert not queue.discard(1)
    assert batch(queue) == [0, 2]
    assert not queue.discard(0)


def test_a_line_whose_items_are_all_discarded_is_not_served() -> None:
    queue = queue_of(SMALL, LARGE)
    queue.discard(0)
    assert batches(queue) == [[1]]


def test_nothing_waits_in_a_queue_that_was_cleared() -> None:
    queue = queue_of(SMALL, LARGE, SMALL)
    queue.clear()
    assert (queue.size, queue.next_line(), queue.oldest_since("a"), queue.waiting_images("a")) == (0, None, None, 0)
    assert not queue.discard(0)


def test_expired_items_are_dropped_and_named_and_do_not_fill_the_batch() -> None:
    queue: Queue[int] = Queue()
    for number, deadline in enumerate((1.0, 5.0, 9.0, 9.0, 9.0)):
        queue.put(SMALL, number, now=0.0, deadline=deadline)
    taken = take(queue, 2, now=5.0)
    assert [each.item for each in taken.expired] == [0, 1]
    assert [each.item for each in taken.batch] == [2, 3]
    assert taken.left == 1


def test_when_a_whole_line_has_expired_the_next_one_is_served() -> None:
    queue: Queue[int] = Queue()
    queue.put(SMALL, 0, now=0.0, deadline=1.0)
    queue.put(LARGE, 1, now=0.0, deadline=9.0)
    nobody = take(queue, now=5.0)
    assert [each.item for each in nobody.expired] == [0]
    assert (nobody.batch, nobody.left) == ([], 0)
    assert batch(queue, now=5.0) == [1]


def test_the_oldest_is_known_by_model_and_so_is_the_number_of_images() -> None:
    queue = queue_of(OTHER, SMALL, TEXT, SMALL)
    assert queue.oldest_since("a") == 1.0
    assert queue.oldest_since("b") == 0.0
    assert queue.oldest_since("c") is None
    assert queue.waiting_images("a") == 2
    assert queue.waiting_images("b") == 1
    assert queue.waiting_images("c") == 0


def test_nobody_joins_a_set_and_a_set_joins_nobody() -> None:
    queue = queue_of(SMALL)
    queue.put_set(SMALL, [1, 2], now=0.0, deadline=NEVER)
    queue.put_set(SMALL, [3], now=0.0, deadline=NEVER)
    queue.put(SMALL, 4, now=0.0, deadline=NEVER)
    assert batches(queue) == [[0, 4], [1, 2], [3]]


def test_a_set_that_is_longer_than_a_batch_is_served_in_order() -> None:
    queue: Queue[int] = Queue()
    queue.put_set(SMALL, list(range(5)), now=0.0, deadline=NEVER)
    queue.put(LARGE, 5, now=0.0, deadline=NEVER)
    assert batches(queue, 2) == [[0, 1], [2, 3], [4], [5]]


def test_an_item_of_a_set_can_leave() -> None:
    queue: Queue[int] = Queue()
    tickets = queue.put_set(SMALL, [0, 1, 2], now=0.0, deadline=NEVER)
    assert queue.discard(tickets[1])
    assert batch(queue) == [0, 2]


def test_the_images_of_a_set_are_counted_as_others_are() -> None:
    queue: Queue[int] = Queue()
    queue.put_set(SMALL, [0, 1], now=3.0, deadline=NEVER)
    queue.put_set(TEXT, [2], now=4.0, deadline=NEVER)
    assert queue.waiting_images("a") == 2
    assert queue.oldest_since("a") == 3.0


arrivals = st.lists(st.sampled_from(SHAPES), max_size=40)


@given(arrivals, st.integers(1, 5))
def test_batches_are_of_one_shape_within_the_ceiling_and_serve_all_in_order(shapes: list[Shape], most: int) -> None:
    served = []
    for items in batches(queue_of(*shapes), most):
        assert 1 <= len(items) <= most
        assert len({shapes[item] for item in items}) == 1
        served += items
    assert sorted(served) == list(range(len(shapes)))
    for shape in SHAPES:
        line = [item for item in served if shapes[item] is shape]
        assert line == sorted(line)


@given(arrivals, st.integers(1, 5))
def test_every_batch_begins_with_the_oldest_item_that_waits(shapes: list[Shape], most: int) -> None:
    left = set(range(len(shapes)))
    for items in batches(queue_of(*shapes), most):
        assert items[0] == min(left)
        left -= set(items)


@pytest.mark.parametrize("comes_in_a_set", [False, True])
@given(
    older=arrivals, later=st.lists(st.lists(st.sampled_from(SHAPES), max_size=6), max_size=60), most=st.integers(1, 4)
)
def test_an_item_waits_for_no_more_batches_than_there_are_older_items(
    older: list[Shape], later: list[list[Shape]], most: int, comes_in_a_set: bool
) -> None:
    """A rare shape among any traffic, before and after it: n older items, served within n + 1 batches."""
    rare = image_shape("rare", 8)
    queue = queue_of(*older)
    if comes_in_a_set:
        queue.put_set(rare, [-1], now=0.0, deadline=NEVER)
    else:
        queue.put(rare, -1, now=0.0, deadline=NEVER)
    served = 1
    while -1 not in batch(queue, most):
        served += 1
        for shape in later.pop() if later else []:
            queue.put(shape, 0, now=0.0, deadline=NEVER)
    assert served <= len(older) + 1


@given(st.lists(st.tuples(st.sampled_from(SHAPES), st.booleans()), max_size=30))
def test_cancelled_items_leave_no_trace(items: list[tuple[Shape, bool]]) -> None:
    queue = queue_of(*(shape for shape, _ in items))
    for ticket, (_, is_cancelled) in enumerate(items):
        if is_cancelled:
            queue.discard(ticket)
    served = [item for each in batches(queue) for item in each]
    assert sorted(served) == [ticket for ticket, (_, is_cancelled) in enumerate(items) if not is_cancelled]


def turns(queue: Queue[int], seconds: dict[Shape, float], *, number: int, most: int = 1) -> list[Shape]:
    """The shapes of the next batches, whose forwards last so long."""
    shapes = []
    for _ in range(number):
        taken = take(queue, most)
        queue.ran(taken.shape, seconds[taken.shape])
        shapes.append(taken.shape)
    return shapes


def test_who_computes_briefly_does_not_wait_for_all_that_is_older_of_who_computes_long() -> None:
    queue = queue_of(*[LARGE] * 10)
    seconds: dict[Shape, float] = {LARGE: 1.0, SMALL: 0.01}
    assert turns(queue, seconds, number=2) == [LARGE, LARGE]
    queue.put(SMALL, 10, now=10.0, deadline=NEVER)
    assert turns(queue, seconds, number=2) == [SMALL, LARGE]


def test_shapes_get_equal_time() -> None:
    queue = queue_of(*[LARGE] * 20, *[SMALL] * 100)
    shapes = turns(queue, {LARGE: 1.0, SMALL: 0.25}, number=50)
    assert shapes.count(SMALL) == pytest.approx(4 * shapes.count(LARGE), abs=4)


def test_a_shape_that_was_not_waited_for_has_saved_nothing_up() -> None:
    queue = queue_of(*[LARGE] * 10, *[SMALL] * 10)
    queue_of_large_alone = turns(queue, {LARGE: 1.0, SMALL: 1.0}, number=8)
    assert queue_of_large_alone == [LARGE, SMALL] * 4
    for number in range(20, 30):
        queue.put(TEXT, number, now=20.0, deadline=NEVER)
    shapes = turns(queue, {LARGE: 1.0, SMALL: 1.0, TEXT: 1.0}, number=9)
    assert [shapes.count(each) for each in (LARGE, SMALL, TEXT)] == [3, 3, 3]


def test_another_lane_does_not_take_the_shape_that_runs_if_others_wait_too() -> None:
    queue = queue_of(*[LARGE] * 10)
    seconds: dict[Shape, float] = {LARGE: 1.0}
    turns(queue, seconds, number=1)
    take(queue, 1)  # and is at work
    queue.put(SMALL, 10, now=10.0, deadline=NEVER)
    assert take(queue, 1).shape is SMALL


def test_turns_of_many_shapes_are_not_kept_for_ever() -> None:
    queue: Queue[int] = Queue()
    for side in range(5000):
        shape = image_shape("a", side + 1)
        queue.put(shape, side, now=0.0, deadline=NEVER)
        take(queue)
        queue.ran(shape, 0.01)
    assert len(queue._turns) <= 1001


@pytest.mark.parametrize("others", [1, 5, 5000], ids=["one other shape", "five in turn", "always a new one"])
def test_a_long_shape_gets_its_part_while_others_come_without_end(others: int) -> None:
    """At any time one item of another shape waits beside it."""
    shapes = [image_shape("b", side + 1) for side in range(others)]
    queue = queue_of(LARGE, shapes[0])
    waited_s = longest_s = 0.0
    for number in range(1, 1000):
        shape = take(queue, 1).shape
        queue.ran(shape, 0.2 if shape is LARGE else 0.05)
        queue.put(LARGE if shape is LARGE else shapes[number % others], number, now=0.0, deadline=NEVER)
        waited_s = 0.0 if shape is LARGE else waited_s + 0.05
        longest_s = max(longest_s, waited_s)
    assert longest_s < 0.5
