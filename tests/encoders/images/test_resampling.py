"""The fast path from bytes to pixels against the exact one, on photographs, in values of 255."""

import io

import numpy as np
import pytest
from PIL import Image

from encoders.contract.spec import Preprocessing
from encoders.contract.values import ImageSize, Pixels
from encoders.images.decode import decode
from encoders.images.preprocess import enough, preprocess, resize_exactly
from encoders.images.resample import resize
from tests.support.photographs import NAMES, photograph

PLAIN = Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3)


def difference(a: Pixels, b: Image.Image) -> tuple[float, float]:
    """Greatest and mean."""
    apart = np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int))
    return apart.max(), apart.mean()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
@pytest.mark.parametrize("size", [(224, 224), (96, 128), (64, 64), (700, 650)])
def test_a_resized_photograph_is_off_by_two_at_most(
    name: str, resample: Image.Resampling, size: tuple[int, int]
) -> None:
    photo = photograph(name)
    largest, mean = difference(resize(photo, ImageSize(*size), resample), photo.resize(size[::-1], resample))
    assert largest <= (2 if size[0] > min(photo.size) else 1)
    assert mean < 0.06


@pytest.mark.parametrize("resample", [Image.Resampling.LANCZOS, Image.Resampling.NEAREST])
def test_other_filters_are_pillow_s(resample: Image.Resampling) -> None:
    photo = photograph("coffee")
    assert difference(resize(photo, ImageSize(50, 60), resample), photo.resize((60, 50), resample)) == (0, 0)


def test_it_does_not_write_into_the_image() -> None:
    photo = photograph("coffee")
    before = photo.tobytes()
    resize(photo, ImageSize(50, 60), Image.Resampling.BICUBIC)
    assert photo.tobytes() == before


def twelve_megapixels(name: str) -> bytes:
    """As a camera saves it: 4000 x 3000, subsampled colour."""
    out = io.BytesIO()
    photograph(name).resize((4000, 3000), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.parametrize("how", ["shortest", "squash", "longest"])
def test_a_photograph_decoded_at_a_part_of_its_size_is_off_by_three_at_most(name: str, how: str) -> None:
    content = twelve_megapixels(name)
    preprocessing = Preprocessing(PLAIN.mean, PLAIN.std, resize=how, crop_pct=0.9 if how == "shortest" else 1.0)  # type: ignore[arg-type]
    size = ImageSize(224, 224)
    small = decode(content, at_least=enough(preprocessing, size))
    assert 2 * 224 <= min(small.size) < 3000
    exact = preprocess(decode(content), preprocessing, size).astype(int)
    fast = preprocess(small, preprocessing, size, resize=resize).astype(int)
    assert np.abs(fast - exact).max() <= 3
    assert np.abs(fast - exact).mean() < 0.5


@pytest.mark.parametrize("size", [(427, 640), (401, 603), (1203, 1001), (1202, 1004), (1204, 1012)])
def test_a_side_that_does_not_divide_moves_nothing(size: tuple[int, int]) -> None:
    out = io.BytesIO()
    photograph("rocket").resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=92)
    fast, exact = (
        preprocess(decode(out.getvalue(), at_least=at_least), PLAIN, ImageSize(96, 96), resize=how).astype(int)
        for at_least, how in ((192, resize), (None, resize_exactly))
    )
    assert np.abs(fast - exact).max() <= 3


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_part_of_the_size_is_upright_too(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    out = io.BytesIO()
    photograph("coffee").resize((1200, 800)).save(out, "JPEG", exif=exif)
    found = decode(out.getvalue(), at_least=200)
    assert found.size == ((300, 200) if orientation == 1 else (200, 300))


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_are_decoded_whole(image_format: str) -> None:
    out = io.BytesIO()
    photograph("coffee").save(out, image_format)
    assert decode(out.getvalue(), at_least=16).size == photograph("coffee").size
