"""An image file becomes pixels in one call, by the defaults that the server has too."""

import io

import numpy as np
import pytest
from PIL import Image

from encoders import Encoder, ImageSize, decode, load, pixels_of
from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.errors import ImageTooLarge, NotAnImage, UnsupportedResolution
from encoders.contract.values import Pixels
from encoders.images.preprocess import enough
from tests.support.photographs import photograph


def jpeg(*, side: int) -> bytes:
    out = io.BytesIO()
    photograph("coffee").resize((side, side)).save(out, "JPEG", quality=92)
    return out.getvalue()


class Remembers(FakeEncoder):
    """Keeps the image that it was given to preprocess, and whether exactly."""

    def preprocess(self, image: Image.Image, size: ImageSize, *, exact: bool = False) -> Pixels:
        self.given = image.size, exact
        return super().preprocess(image, size)


@pytest.fixture(scope="module")
def vit() -> Encoder:
    return load("demo:vit")


def test_by_default_a_large_photograph_is_decoded_at_a_part_of_its_size() -> None:
    encoder = Remembers(fake_spec())
    pixels_of(encoder, jpeg(side=1024))
    (width, height), exact = encoder.given
    assert enough(encoder.spec.preprocessing, encoder.spec.size()) <= width == height < 1024
    assert not exact


def test_exact_pixels_are_made_of_all_that_was_photographed() -> None:
    encoder = Remembers(fake_spec())
    pixels_of(encoder, jpeg(side=1024), exact=True)
    assert encoder.given == ((1024, 1024), True)


def test_exact_pixels_equal_the_reference_and_the_default_is_near(vit: Encoder) -> None:
    file, size = jpeg(side=1024), vit.spec.size()
    reference = vit.preprocess(decode(file), size, exact=True)
    np.testing.assert_array_equal(pixels_of(vit, file, exact=True), reference)
    assert np.abs(pixels_of(vit, file).astype(int) - reference.astype(int)).max() <= 3


def test_decoding_and_preprocessing_are_exact_only_if_asked(vit: Encoder) -> None:
    """One default in all functions, so that two ways of writing it give one vector."""
    file, size = jpeg(side=1024), vit.spec.size()
    by_hand = vit.preprocess(decode(file, at_least=enough(vit.spec.preprocessing, size)), size)
    np.testing.assert_array_equal(pixels_of(vit, file), by_hand)


def test_another_size_can_be_asked_for(vit: Encoder) -> None:
    assert pixels_of(vit, jpeg(side=300), ImageSize(64, 128)).shape == (64, 128, 3)


def test_a_size_the_encoder_cannot_run_at_is_refused_before_decoding(vit: Encoder) -> None:
    with pytest.raises(UnsupportedResolution):
        pixels_of(vit, b"not an image", ImageSize(65, 64))


def test_bytes_that_are_no_image_and_images_over_the_limit_are_refused(vit: Encoder) -> None:
    with pytest.raises(NotAnImage):
        pixels_of(vit, b"not an image")
    with pytest.raises(ImageTooLarge):
        pixels_of(vit, jpeg(side=300), max_pixels=299 * 299)
