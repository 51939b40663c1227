"""Pixels against the transforms of open_clip, on photographs of several shapes. (timm's: test_timm, HF's: test_hf.)"""

import tracemalloc

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from encoders.contract.spec import Preprocessing
from encoders.contract.values import ImageSize
from encoders.images.preprocess import preprocess
from tests.support.photographs import NAMES, photograph

PLAIN = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(224, 224), (336, 336), (225, 225), (224, 336), (700, 650)])
def test_pixels_equal_open_clips(name: str, resize: str, interpolation: str, size: tuple[int, int]) -> None:
    if resize == "shortest" and size[0] != size[1]:
        interpolation = "bicubic"  # open_clip's ResizeKeepRatio is never told another
    config = PreprocessCfg(size=size, mean=PLAIN.mean, std=PLAIN.std, interpolation=interpolation, resize_mode=resize)
    expected = image_transform_v2(config, is_train=False)(photograph(name))
    ours = preprocess(
        photograph(name),
        Preprocessing(mean=PLAIN.mean, std=PLAIN.std, interpolation=interpolation, resize=resize),  # type: ignore[arg-type]
        ImageSize(*size),
    )
    assert ours.shape == (*size, 3)
    np.testing.assert_array_equal(ours, (expected.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def test_a_panorama_costs_no_more_than_its_crop() -> None:
    """A 2 x 20,000 strip would be resized to 224 x 2,240,000; the crop's box alone must give the same picture."""
    rng = np.random.default_rng(0)
    strip = Image.fromarray(rng.integers(0, 256, (40, 4000, 3), dtype=np.uint8))
    found = preprocess(strip, PLAIN, ImageSize(64, 64))
    whole = strip.resize((6400, 64), Image.Resampling.BICUBIC).crop((3168, 0, 3232, 64))
    assert np.abs(found.astype(int) - np.asarray(whole).astype(int)).max() <= 1
    assert preprocess(Image.new("RGB", (20_000, 2)), PLAIN, ImageSize(224, 224)).shape == (224, 224, 3)


@pytest.mark.parametrize("resize", ["shortest", "longest", "squash", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (20_000, 2), (1, 500), (500, 1), (3, 2)])
def test_any_shape_becomes_the_target(resize: str, shape: tuple[int, int]) -> None:
    how = Preprocessing(mean=PLAIN.mean, std=PLAIN.std, resize=resize)  # type: ignore[arg-type]
    for size in (ImageSize(32, 32), ImageSize(16, 48)):
        assert preprocess(Image.new("RGB", shape), how, size).shape == (*size, 3)


@pytest.mark.parametrize(
    ("width", "height", "preprocessing"),
    [
        (100_000, 1, Preprocessing((0, 0, 0), (1, 1, 1), resize="edge", crop_pct=1.25)),
        (8_200, 2_050, Preprocessing((0, 0, 0), (1, 1, 1), resize="pad")),
    ],
)
def test_an_image_of_odd_proportions_is_not_blown_up(width: int, height: int, preprocessing: Preprocessing) -> None:
    """Enlarged or padded to a square it would take hundreds of megabytes."""
    image = Image.new("RGB", (width, height), "white")
    tracemalloc.start()
    try:
        pixels = preprocess(image, preprocessing, ImageSize(64, 64))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert pixels.shape == (64, 64, 3)
    assert (pixels[32] == 255).all()
    assert peak < 10_000_000
