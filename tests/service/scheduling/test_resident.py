"""An encoder's health, and its first forward."""

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.errors import EncoderFailed, NonFiniteOutput
from encoders.contract.values import Floats, TokenIds
from service.scheduling.resident import Resident, is_finite

FAILURE = EncoderFailed("broken")


def failing(error: BaseException = FAILURE) -> Callable[[int], None]:
    def fail(batch: int) -> None:
        raise error

    return fail


class Illiterate(FakeEncoder):
    """Its texts are NaN."""

    def encode_text(self, ids: TokenIds) -> Floats:
        return super().encode_text(ids) * np.nan


def with_pooled(pooled: Floats | None) -> FakeEncoder:
    return FakeEncoder(after=lambda encoded: replace(encoded, pooled=pooled))


def test_an_encoder_is_healthy_when_it_has_come() -> None:
    assert Resident(FakeEncoder()).is_healthy


def test_a_batch_in_which_anything_worked_keeps_it_healthy_and_costs_no_forward() -> None:
    encoder = FakeEncoder(before=failing())
    resident = Resident(encoder)
    resident.ran([FAILURE, np.zeros(6), FAILURE])
    assert resident.is_healthy
    assert encoder.batches == []


def test_when_nothing_worked_a_grey_image_is_asked() -> None:
    encoder = FakeEncoder()
    resident = Resident(encoder)
    resident.ran([FAILURE, FAILURE])
    assert resident.is_healthy
    assert encoder.batches == [1, 1]  # an image and a text


def test_a_model_that_fails_on_a_good_image_too_is_unhealthy_until_it_works_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    encoder = FakeEncoder(before=failing(RuntimeError("device-side assert")))
    resident = Resident(encoder)
    resident.ran([FAILURE])
    assert not resident.is_healthy
    assert "fake:vit fails on a plain grey image" in caplog.text
    assert not resident.probe()
    assert not resident.is_healthy
    encoder.before = lambda batch: None
    assert resident.probe()
    assert resident.is_healthy


def test_a_batch_that_works_makes_it_healthy_again() -> None:
    resident = Resident(FakeEncoder(before=failing()))
    assert not resident.probe()
    resident.ran([FAILURE, np.zeros(6)])
    assert resident.is_healthy


def test_an_encoder_that_works_is_tried_with_an_image_and_a_text() -> None:
    encoder = FakeEncoder()
    Resident(encoder).try_out()
    assert encoder.batches == [1, 1]


def test_an_encoder_without_a_text_half_is_tried_with_an_image_alone() -> None:
    encoder = FakeEncoder(fake_spec(scoring=None, context_length=None))
    Resident(encoder).try_out()
    assert encoder.batches == [1]


@pytest.mark.parametrize(
    ("encoder", "error"),
    [
        (with_pooled(np.full((1, 6), np.nan, np.float32)), NonFiniteOutput),
        (with_pooled(np.full((1, 6), np.inf, np.float32)), NonFiniteOutput),
        (Illiterate(), NonFiniteOutput),
        (with_pooled(np.zeros((2, 6), np.float32)), EncoderFailed),
        (with_pooled(None), EncoderFailed),
        (FakeEncoder(before=failing(RuntimeError("device-side assert"))), RuntimeError),
    ],
    ids=["NaN", "infinity", "NaN of texts", "two rows for one", "no rows", "an error of its own"],
)
def test_an_encoder_that_fails_its_first_forward_says_so(encoder: FakeEncoder, error: type[Exception]) -> None:
    with pytest.raises(error):
        Resident(encoder).try_out()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_finite_is_told_from_nan_and_infinity(dtype: str) -> None:
    values = np.full((4, 5), 60000, dtype=dtype)
    assert is_finite(values)
    for bad in (np.nan, np.inf, -np.inf):
        values[2, 2] = bad
        assert not is_finite(values)


def test_large_finite_values_are_finite() -> None:
    assert is_finite(np.full(10, 3e38, dtype=np.float32))
