"""The batching policy, by plain calls."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.contract.values import ImageSize, Outputs, TokenKind
from service.scheduling.queue import ENOUGH, BatchKey, ImageKey, Queue, TextKey, image_key

_POOLED = Outputs(pooled=True)
SMALL = ImageKey("a", ImageSize(32, 32), _POOLED)
LARGE = ImageKey("a", ImageSize(64, 64), _POOLED)
TOKENS = ImageKey("a", ImageSize(32, 32), Outputs(tokens=TokenKind.HIDDEN))
OTHER = ImageKey("b", ImageSize(32, 32), _POOLED)
TEXT = TextKey("a")
KEYS: list[BatchKey] = [SMALL, LARGE, TOKENS, OTHER, TEXT]
NEVER = float("inf")


def queue_of(*keys: BatchKey, ceiling: int = 8, deadline: float = NEVER, takers: int = 1) -> Queue[int]:
    queue: Queue[int] = Queue(ceiling=lambda key: ceiling, takers=takers)
    for number, key in enumerate(keys):
        queue.put(key, number, now=float(number), deadline=deadline)
    return queue


def batch(queue: Queue[int], now: float = 0.0) -> list[int]:
    return [waiting.item for waiting in queue.form_batch(now).batch]


def test_equal_keys_find_each_other_in_mixed_traffic() -> None:
    queue = queue_of(SMALL, LARGE, SMALL, TEXT, SMALL)
    assert [batch(queue), batch(queue), batch(queue)] == [[0, 2, 4], [1], [3]]


def test_a_lone_item_does_not_wait_for_company() -> None:
    assert batch(queue_of(SMALL)) == [0]


def coming(*keys: BatchKey, waiting: int = 1, ceiling: int = 64, takers: int = 1) -> Queue[int]:
    """So many of SMALL wait since 0 s, with two seconds' patience, and one of each of the keys is on its way."""
    queue: Queue[int] = Queue(ceiling=lambda key: ceiling, patience=lambda key: 2.0, takers=takers)
    for number in range(waiting):
        queue.put(SMALL, number, now=0.0, deadline=NEVER)
    for key in keys:
        queue.expect(key)
    return queue


def test_what_is_on_its_way_is_waited_for_until_it_has_arrived() -> None:
    queue = coming(SMALL, SMALL)
    assert queue.ripe_in(0.5) == 1.5
    queue.arrived(SMALL)
    assert queue.ripe_in(0.5) == 1.5
    queue.arrived(SMALL)
    assert queue.ripe_in(0.5) == 0


def test_patience_ends() -> None:
    assert coming(SMALL).ripe_in(5.0) == 0


def test_others_on_their_way_are_not_waited_for() -> None:
    assert coming(LARGE, TOKENS, OTHER).ripe_in(0.0) == 0


def test_a_batch_that_is_large_enough_or_full_waits_for_nobody() -> None:
    assert coming(SMALL, waiting=ENOUGH - 1).ripe_in(0.0) == 2.0
    assert coming(SMALL, waiting=ENOUGH).ripe_in(0.0) == 0
    assert coming(SMALL, waiting=ENOUGH // 2, takers=2).ripe_in(0.0) == 0
    assert coming(SMALL, waiting=3, ceiling=3).ripe_in(0.0) == 0


def test_nothing_is_ripe_where_nothing_waits() -> None:
    assert coming(SMALL, waiting=0).ripe_in(0.0) is None


def test_equal_keys_are_one_object() -> None:
    assert image_key("a", ImageSize(32, 32), Outputs(pooled=True)) is image_key("a", ImageSize(32, 32), _POOLED)
    assert image_key("a", ImageSize(32, 32), _POOLED) == SMALL
    assert hash(image_key("a", ImageSize(32, 32), _POOLED)) == hash(SMALL)


def test_an_empty_queue_gives_an_empty_batch() -> None:
    assert batch(queue_of()) == []


@pytest.mark.parametrize(("waiting", "taken"), [(1, 1), (7, 4), (15, 8), (16, 16), (20, 16), (40, 20)])
def test_little_is_divided_among_those_who_can_take_it_and_of_much_each_takes_enough(waiting: int, taken: int) -> None:
    queue = queue_of(*[SMALL] * waiting, ceiling=64, takers=2)
    assert len(queue.form_batch(0.0, among=2).batch) == taken


def test_the_ceiling_is_asked_for_each_key() -> None:
    ceilings: dict[BatchKey, int] = {SMALL: 2, LARGE: 1}
    queue: Queue[int] = Queue(ceiling=ceilings.__getitem__)
    for number, key in enumerate([SMALL, SMALL, SMALL, LARGE, LARGE]):
        queue.put(key, number, now=0.0, deadline=NEVER)
    assert [batch(queue) for _ in range(4)] == [[0, 1], [2], [3], [4]]


def test_a_discarded_item_is_in_no_batch() -> None:
    queue = queue_of(SMALL, SMALL, SMALL)
    assert queue.discard(1)
    assert batch(queue) == [0, 2]
    assert not queue.discard(0)


def test_a_batch_is_of_a_size_when_so_many_of_the_oldest_key_wait() -> None:
    queue = queue_of(SMALL, LARGE, SMALL, LARGE, LARGE)
    assert queue.has_batch_of(2)
    assert not queue.has_batch_of(3)


def test_a_batch_at_its_ceiling_is_of_any_size() -> None:
    assert queue_of(SMALL, SMALL, ceiling=2).has_batch_of(100)


def test_neither_texts_nor_nothing_are_a_batch_of_any_size() -> None:
    assert not queue_of(TEXT, TEXT).has_batch_of(1)
    assert not queue_of().has_batch_of(1)


def test_expired_items_are_dropped_and_named_and_do_not_fill_the_batch() -> None:
    queue: Queue[str] = Queue(ceiling=lambda key: 2)
    for name, deadline in (("late", 1.0), ("later", 2.0), ("in time", 9.0), ("also", 9.0), ("next", 9.0)):
        queue.put(SMALL, name, now=0.0, deadline=deadline)
    formed = queue.form_batch(5.0)
    assert [waiting.item for waiting in formed.expired] == ["late", "later"]
    assert [waiting.item for waiting in formed.batch] == ["in time", "also"]


def test_when_a_whole_line_has_expired_the_next_one_is_served() -> None:
    queue: Queue[str] = Queue(ceiling=lambda key: 8)
    queue.put(SMALL, "late", now=0.0, deadline=1.0)
    queue.put(LARGE, "in time", now=0.0, deadline=9.0)
    nobody = queue.form_batch(5.0)
    assert [waiting.item for waiting in nobody.expired] == ["late"]
    assert not nobody.batch
    assert [waiting.item for waiting in queue.form_batch(5.0).batch] == ["in time"]


def test_the_oldest_is_known_by_model() -> None:
    queue = queue_of(OTHER, SMALL, TEXT, SMALL)
    assert queue.oldest_since("a") == 1.0
    assert queue.oldest_since("b") == 0.0
    assert queue.oldest_since("c") is None
    assert queue.waiting_images("a") == 2


arrivals = st.lists(st.sampled_from(KEYS), max_size=40)


@given(arrivals, st.integers(1, 5))
def test_batches_are_of_one_key_within_the_ceiling_and_serve_all_in_order(keys: list[BatchKey], ceiling: int) -> None:
    queue = queue_of(*keys, ceiling=ceiling)
    served: list[int] = []
    while len(queue):
        items = batch(queue)
        assert 1 <= len(items) <= ceiling
        assert len({keys[item] for item in items}) == 1
        served += items
    assert sorted(served) == list(range(len(keys)))
    for key in KEYS:
        line = [item for item in served if keys[item] == key]
        assert line == sorted(line)


@given(arrivals, st.lists(st.lists(st.sampled_from(KEYS), max_size=6), max_size=60), st.integers(1, 4))
def test_an_item_waits_for_no_more_batches_than_there_are_older_items(
    older: list[BatchKey], later: list[list[BatchKey]], ceiling: int
) -> None:
    """A rare shape among any traffic, before and after it: n older items, served within n + 1 batches."""
    rare = ImageKey("rare", ImageSize(8, 8), _POOLED)
    queue = queue_of(*older, ceiling=ceiling)
    queue.put(rare, -1, now=0.0, deadline=NEVER)
    put: Callable[[BatchKey], int] = lambda key: queue.put(key, 0, now=0.0, deadline=NEVER)  # noqa: E731
    batches = 0
    while True:
        batches += 1
        if -1 in batch(queue):
            break
        for key in later.pop() if later else []:
            put(key)
    assert batches <= len(older) + 1


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.booleans()), max_size=30))
def test_cancelled_items_leave_no_trace(items: list[tuple[BatchKey, bool]]) -> None:
    queue = queue_of(*(key for key, _ in items))
    for ticket, (_, is_cancelled) in enumerate(items):
        if is_cancelled:
            queue.discard(ticket)
    served: list[int] = []
    while len(queue):
        served += batch(queue)
    assert sorted(served) == [ticket for ticket, (_, is_cancelled) in enumerate(items) if not is_cancelled]
