"""An image's way to its row, of an image whose making goes wrong in ways that are nobody's error."""

import asyncio
import io
import time
from contextlib import ExitStack
from typing import cast

import numpy as np
import pytest
from PIL import Image

from encoders.adapters.fake import FakeEncoder
from encoders.contract.errors import EncoderFailed
from encoders.contract.values import Encoded, ImageSize, Pixels
from service.engine.decoding import Decoding
from service.engine.fetcher import Fetcher
from service.engine.images import EncodedImages, Images
from service.memory.account import Account
from service.scheduling.patience import Patience
from tests.support.device_threads import NEVER, SHAPE, Device, running

pytestmark = pytest.mark.anyio


class Panic(BaseException):
    """As a library in Rust raises it."""


class Panicking(FakeEncoder):
    """Its preprocessing panics at a white image."""

    def preprocess(self, image: Image.Image, size: ImageSize, *, exact: bool = False) -> Pixels:
        if (np.asarray(image) == 255).all():
            raise Panic
        return super().preprocess(image, size, exact=exact)


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


async def encode(images: Images, device: Device, *values: int, is_set: bool = False) -> EncodedImages:
    sources = [png(value) for value in values]
    async with asyncio.timeout(30):
        return await images.encode(
            sources, resident=device.resident, shape=SHAPE, started=0.0, deadline=NEVER, is_set=is_set
        )


async def test_an_image_whose_making_panics_is_an_error_at_its_place_and_nobody_waits_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither its caller nor a batch of its shape: the clock runs only in forwards, so patience has no end."""
    now = [0.0]

    def tick(batch: int) -> None:
        now[0] += 10_000

    encoder = Panicking(before=tick)
    with ExitStack() as stack:
        decoding = Decoding(Account(2**30), threads=1, processes=1)
        stack.callback(decoding.stop)
        async with running(encoder, clock=lambda: now[0], patience=Patience()) as device:
            images = Images(
                threads=device.threads,
                fetcher=cast(Fetcher, None),
                decoding=decoding,
                clock=time.monotonic,
                max_image_pixels=10**6,
                exact_pixels=False,
            )
            await encode(images, device, 1)
            result = await encode(images, device, 1, 255, 2)
            assert [type(outcome) for outcome in result.outcomes] == [Encoded, EncoderFailed, Encoded]
            bad = result.outcomes[1]
            assert isinstance(bad, EncoderFailed)
            assert isinstance(bad.__cause__, Panic)
            assert str(bad) == "fake:vit could not prepare the image."
            assert isinstance((await encode(images, device, 255)).outcomes[0], EncoderFailed)
            assert isinstance((await encode(images, device, 3)).outcomes[0], Encoded)
            a_set = await encode(images, device, 1, 255, 2, is_set=True)
            assert [type(outcome) for outcome in a_set.outcomes] == [Encoded, EncoderFailed, Encoded]
    assert encoder.batches == [1, 2, 1, 2]
    assert "an image could not be prepared" in caplog.text
