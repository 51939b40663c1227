"""The encoders that are recommended can be had, and their downloads are as large as is said."""

from itertools import pairwise

import pytest

from encoders import blueprint
from encoders.adapters.catalog import RECOMMENDED, Recommended, listed


def test_each_is_one_that_open_clip_offers() -> None:
    assert {each.id for each in RECOMMENDED} <= set(listed("openclip"))


def test_they_come_small_to_large() -> None:
    assert len(RECOMMENDED) == 3
    assert all(a.download_bytes < b.download_bytes for a, b in pairwise(RECOMMENDED))


@pytest.mark.parametrize("each", RECOMMENDED, ids=lambda each: each.id)
def test_the_download_is_the_parameters_in_32_bits_or_in_16(each: Recommended) -> None:
    spec = blueprint(each.id).spec
    assert spec.trained_on is None
    assert any(each.download_bytes == pytest.approx(spec.parameters * size, rel=0.05) for size in (4, 2))


@pytest.mark.parametrize("each", [each for each in RECOMMENDED if "patches" in each.purpose], ids=lambda each: each.id)
def test_the_patches_named_are_its_grid(each: Recommended) -> None:
    rows, cols = blueprint(each.id).spec.grid()
    assert f"{rows}x{cols} patches" in each.purpose
