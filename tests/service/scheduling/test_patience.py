"""For what a batch waits, and how long, by plain calls."""

import pytest

from encoders.contract.values import Outputs, TokenKind
from service.memory.shape import Shape
from service.scheduling.patience import Patience
from tests.support.shapes import image_shape, text_shape

SMALL, LARGE, OTHER = image_shape("a", 32), image_shape("a", 64), image_shape("b", 32)
TOKENS, TEXT = image_shape("a", 32, Outputs(tokens=TokenKind.HIDDEN)), text_shape("a")
ENOUGH = 32


def coming(*shapes: Shape) -> Patience:
    """An item of each of the shapes is on its way."""
    patience = Patience()
    for shape in shapes:
        patience.expect(shape)
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
    assert not patience.arrived(SMALL)
    assert wait_s(patience, 0.5) == 1.5
    assert patience.arrived(SMALL)
    assert wait_s(patience, 0.5) == 0


def test_what_is_on_its_way_is_counted_whatever_its_shape() -> None:
    patience = coming(SMALL, LARGE, SMALL)
    assert patience.coming == 3
    assert not patience.arrived(SMALL)
    assert patience.coming == 2
    assert patience.arrived(SMALL)
    assert patience.arrived(LARGE)
    assert patience.coming == 0


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
