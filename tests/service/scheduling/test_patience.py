"""For what a batch waits, and how long, by plain calls."""

import pytest

from encoders.contract.values import Outputs, TokenKind
from service.memory.shape import Shape
from service.scheduling.patience import Patience
from tests.support.shapes import image_shape, text_shape

SMALL, LARGE, OTHER = image_shape("a", 32), image_shape("a", 64), image_shape("b", 32)
TOKENS, TEXT = image_shape("a", 32, Outputs(tokens=TokenKind.HIDDEN)), text_shape("a")
ENOUGH = 32


def coming(*shapes: Shape, now: float = 0.0) -> Patience:
    """An item of each of the shapes is on its way, since then."""
    patience = Patience()
    for shape in shapes:
        patience.expect(shape, now=now)
    return patience


def wait_s(
    patience: Patience,
    now: float = 0.0,
    *,
    waiting: int = 1,
    enough: int = ENOUGH,
    since: float = 0.0,
    forward_s: float = 0.5,
) -> float:
    """Of a batch of SMALL; the model's last forward took half a second."""
    return patience.wait_s(SMALL, waiting=waiting, enough=enough, forward_s=forward_s, since=since, now=now)


def test_a_batch_does_not_wait_for_company_that_may_not_come() -> None:
    assert wait_s(coming()) == 0


def test_what_is_on_its_way_is_waited_for_until_it_has_arrived() -> None:
    patience = coming(SMALL, SMALL)
    assert wait_s(patience, 0.5) == 1.5
    assert not patience.arrived(SMALL, expected=0.0, in_line=2)
    assert wait_s(patience, 0.5) == 1.5
    assert patience.arrived(SMALL, expected=0.0, in_line=3)
    assert wait_s(patience, 0.5) == 0


def test_what_was_expected_after_the_oldest_came_is_not_waited_for() -> None:
    """Where requests keep coming there is always another on its way."""
    patience = coming(SMALL, now=1.0)
    patience.expect(SMALL, now=2.0)
    patience.expect(SMALL, now=3.0)
    assert wait_s(patience, 3.0, since=0.9) == 0
    assert wait_s(patience, 3.0, since=2.5) == 1.5
    assert not patience.arrived(SMALL, expected=2.0, in_line=2), "the one of before it is still on its way"
    assert wait_s(patience, 3.0, since=2.5) == 1.5
    assert patience.arrived(SMALL, expected=1.0, in_line=3), "the one of after it is of no account"
    assert wait_s(patience, 3.0, since=2.5) == 0
    assert wait_s(patience, 3.0, since=3.0) == 2.0


def test_what_cannot_be_queued_is_not_waited_for_any_more() -> None:
    patience = coming(SMALL)
    assert wait_s(patience) == 2.0
    assert patience.arrived(SMALL, expected=0.0, in_line=0)


def test_nobody_is_told_of_an_arrival_while_no_batch_waits() -> None:
    patience = coming(SMALL, SMALL, SMALL)
    assert not patience.arrived(SMALL, expected=0.0, in_line=ENOUGH)
    assert wait_s(patience, waiting=1) == 2.0
    assert wait_s(patience, waiting=ENOUGH) == 0
    assert not patience.arrived(SMALL, expected=0.0, in_line=ENOUGH)


def test_what_is_on_its_way_is_counted_whatever_its_shape() -> None:
    patience = coming(SMALL, LARGE, SMALL)
    assert patience.coming == 3
    for left, shape in enumerate((SMALL, SMALL, LARGE)):
        patience.arrived(shape, expected=0.0, in_line=1)
        assert patience.coming == 2 - left


def test_patience_ends_four_forwards_after_the_oldest_came() -> None:
    assert wait_s(coming(SMALL), 2.9, since=1.0) == pytest.approx(0.1)
    assert wait_s(coming(SMALL), 3.0, since=1.0) == 0
    assert wait_s(coming(SMALL), 5.0, since=1.0) == 0


def test_the_model_s_last_forward_counts_and_there_is_no_patience_before_its_first() -> None:
    assert wait_s(coming(SMALL), forward_s=0.25) == 1.0
    assert wait_s(coming(SMALL), forward_s=0.0) == 0


@pytest.mark.parametrize("other", [LARGE, TOKENS, OTHER, TEXT, image_shape("a", 32)])
def test_others_on_their_way_are_not_waited_for(other: Shape) -> None:
    assert wait_s(coming(other)) == 0


def test_a_batch_that_is_large_enough_waits_for_nobody() -> None:
    assert wait_s(coming(SMALL), waiting=ENOUGH - 1) == 2.0
    assert wait_s(coming(SMALL), waiting=ENOUGH) == 0


def test_it_is_told_of_the_arrival_that_makes_it_large_enough() -> None:
    patience = coming(SMALL, SMALL, SMALL)
    assert wait_s(patience, waiting=ENOUGH - 2) == 2.0
    assert not patience.arrived(SMALL, expected=0.0, in_line=ENOUGH - 1)
    assert patience.arrived(SMALL, expected=0.0, in_line=ENOUGH)
