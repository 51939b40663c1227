"""Permits and Retry-After, by plain calls with a clock of the test's own."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.admission import Admission
from service.errors import Overloaded, ShuttingDown


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_permits_come_back_when_the_block_ends_even_badly() -> None:
    admission = Admission(images=2, texts=1, clock=Clock())
    with contextlib.suppress(ValueError), admission.admit(images=2, texts=1):
        raise ValueError
    with admission.admit(images=2):
        assert admission.inside("images") == 2


def test_all_permits_or_none() -> None:
    admission = Admission(images=2, texts=1, clock=Clock())
    with admission.admit(images=1), pytest.raises(Overloaded), admission.admit(images=1, texts=2):
        pass
    assert (admission.inside("images"), admission.inside("texts")) == (0, 0)


def test_a_request_without_permits_is_inside_too() -> None:
    """One of texts that are known already: a server that drains waits for it."""
    admission = Admission(images=2, texts=1, clock=Clock())
    with admission.admit(images=0, texts=0):
        with admission.admit(images=1):
            pass
        assert not admission.is_empty
    assert admission.is_empty


def test_a_closed_door_admits_nobody() -> None:
    admission = Admission(images=2, texts=1, clock=Clock())
    admission.close()
    with pytest.raises(ShuttingDown):
        admission.check()


def test_retry_after_follows_the_recent_pace() -> None:
    clock = Clock()
    admission = Admission(images=10, texts=1, clock=clock)
    for _ in range(5):  # two images in 4 s each
        clock.now += 4
        with admission.admit(images=2):
            pass
    with admission.admit(images=10), pytest.raises(Overloaded) as caught:
        admission.check()
    assert 16 <= caught.value.retry_after_s <= 20


def test_retry_after_is_of_the_kind_that_is_full() -> None:
    clock = Clock()
    admission = Admission(images=10, texts=10, clock=clock)
    for _ in range(5):
        clock.now += 4
        with admission.admit(images=1):
            pass
        with admission.admit(images=0, texts=10):
            pass
    with admission.admit(images=0, texts=10), pytest.raises(Overloaded) as of_texts, admission.admit(images=0, texts=1):
        pass
    with admission.admit(images=10), pytest.raises(Overloaded) as of_images:
        admission.check()
    assert of_texts.value.retry_after_s <= 4
    assert 32 <= of_images.value.retry_after_s <= 40


@given(st.lists(st.tuples(st.integers(1, 5), st.floats(0, 1e6)), max_size=80), st.floats(0, 1e6))
def test_retry_after_is_whole_seconds_between_one_and_sixty(history: list[tuple[int, float]], later: float) -> None:
    clock = Clock()
    admission = Admission(images=5, texts=1, clock=clock)
    for images, seconds in history:
        clock.now += seconds
        with admission.admit(images=images):
            pass
    clock.now += later
    with admission.admit(images=5), pytest.raises(Overloaded) as caught:
        admission.check()
    assert isinstance(caught.value.retry_after_s, int)
    assert 1 <= caught.value.retry_after_s <= 60


def test_many_images_leave_an_eighth_to_those_who_send_one_but_may_have_all_of_an_empty_queue() -> None:
    admission = Admission(images=16, texts=1, clock=Clock())
    with admission.admit(images=16):
        pass
    with admission.admit(images=10):
        with pytest.raises(Overloaded) as caught, admission.admit(images=5):
            pass
        assert caught.value.facts["limit"] == 14
        with admission.admit(images=4):
            assert not admission.is_full
            with pytest.raises(Overloaded), admission.admit(images=2):
                pass
            with admission.admit(images=1), admission.admit(images=1):
                assert admission.is_full
