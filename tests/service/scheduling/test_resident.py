"""An encoder's health, and its first forward."""

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.errors import EncoderFailed, NonFiniteOutput
from encoders.contract.values import Floats, TokenIds
from service.scheduling.resident import Resident

FAILURE = EncoderFailed("broken")


def failing(error: BaseException = FAILURE) -> Callable[[int], None]:
    def fail(batch: int) -> None:
        raise error

    return fail


class Illiterate(FakeEncoder):
    """Its texts are NaN."""

    def encode_text(self, ids: TokenIds) -> Floats:
        return super().encode_text(ids) * np.nan


class Brief(FakeEncoder):
    """Vectors of its texts are too short."""

    def encode_text(self, ids: TokenIds) -> Floats:
        return super().encode_text(ids)[:, 1:]


def with_pooled(pooled: Floats | None) -> FakeEncoder:
    return FakeEncoder(after=lambda encoded: replace(encoded, pooled=pooled))


def test_an_encoder_is_healthy_when_it_has_come() -> None:
    assert Resident(FakeEncoder()).is_healthy


def test_a_probe_asks_a_grey_image() -> None:
    encoder = FakeEncoder()
    resident = Resident(encoder)
    assert resident.probe()
    assert resident.is_healthy
    assert encoder.batches == [1, 1]  # an image and a text


def test_a_model_that_fails_on_a_good_image_is_unhealthy_until_it_works_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    encoder = FakeEncoder(before=failing(RuntimeError("device-side assert")))
    resident = Resident(encoder)
    for _ in range(2):
        assert not resident.probe()
        assert not resident.is_healthy
    assert "fake:vit fails on a plain grey image" in caplog.text
    encoder.before = lambda batch: None
    assert resident.probe()
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
        (with_pooled(np.zeros((1, 7), np.float32)), EncoderFailed),
        (with_pooled(None), EncoderFailed),
        (FakeEncoder(after=lambda encoded: None), EncoderFailed),  # type: ignore[arg-type, return-value]
        (Brief(), EncoderFailed),
        (FakeEncoder(before=failing(RuntimeError("device-side assert"))), RuntimeError),
    ],
    ids=[
        "NaN",
        "infinity",
        "NaN of texts",
        "two rows for one",
        "width",
        "no rows",
        "nothing",
        "width of texts",
        "an error of its own",
    ],
)
def test_an_encoder_that_fails_its_first_forward_says_so(encoder: FakeEncoder, error: type[Exception]) -> None:
    with pytest.raises(error):
        Resident(encoder).try_out()
