"""What an image takes of a core: by its size, and of pictures at hand."""

import pytest

from encoders.contract.errors import ImageError
from encoders.contract.spec import Preprocessing
from encoders.contract.values import ImageSize
from service.scaling.measured import DECODING, Decoding, terms
from service.scaling.sample import measured
from tests.support.serving import image_bytes

CLIP = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("source", "side", "part"),
    [
        ((480, 640), 224, 1),  # a half would have 240 pixels, and 448 are enough
        ((960, 1280), 224, 2),
        ((3024, 4032), 224, 4),
        ((3024, 4032), 448, 2),
        ((3024, 4032), 32, 8),
    ],
)
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(source: tuple[int, int], side: int, part: int) -> None:
    height, width = source
    found = terms(ImageSize(height, width), CLIP, ImageSize(side, side))
    assert found == (1, height * width, height * width / part**2, side * side)


def test_the_parts_add_up() -> None:
    decoding = Decoding(file=1.0, source=0.1, decoded=0.01, input=0.001)
    assert decoding.core_s(ImageSize(10, 20), CLIP, ImageSize(10, 10)) == pytest.approx(1 + 20 + 2 + 0.1)


def test_larger_pictures_take_longer() -> None:
    sizes = [ImageSize(side, side * 4 // 3) for side in (240, 480, 960, 1920, 3024)]
    seconds = [DECODING.core_s(size, CLIP, ImageSize(448, 448)) for size in sizes]
    assert seconds == sorted(seconds)
    assert 0.0001 < seconds[1] < 0.1


def test_a_sample_is_of_what_can_be_decoded() -> None:
    small, large = (image_bytes(size=(side, side), image_format="JPEG") for side in (32, 256))
    sample = measured([small, b"no image", large], CLIP, ImageSize(16, 16))
    assert (sample.images, sample.nbytes) == (2, (len(small) + len(large)) / 2)
    assert sample.core_s > 0


def test_a_sample_of_no_image_says_why() -> None:
    with pytest.raises(ImageError):
        measured([b"no image"], CLIP, ImageSize(16, 16))
