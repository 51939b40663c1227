"""What is made of an encoder's rows, by plain calls."""

from typing import Literal

import numpy as np
import pytest

from service.engine.postprocess import is_finite, l2_normalize, quantized


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_finite_is_told_from_nan_and_infinity(dtype: str) -> None:
    values = np.full((4, 5), 60000, dtype=dtype)
    assert is_finite(values)
    for bad in (np.nan, np.inf, -np.inf):
        values[2, 2] = bad
        assert not is_finite(values)


def test_large_finite_values_are_finite() -> None:
    assert is_finite(np.full(10, 3e38, dtype=np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_eight_bits_span_the_greatest_number_of_each_row(dtype: str) -> None:
    vectors = np.array([[1.0, -2.0, 0.5], [-0.25, 0.125, 0.0]], dtype=dtype)
    assert quantized(vectors, "int8").tolist() == [[64, -127, 32], [-127, 64, 0]]
    assert quantized(vectors, "uint8").tolist() == [[192, 1, 160], [1, 192, 128]]


@pytest.mark.parametrize("number", [0.0, 1e-40, 1e-30, 1e30, 3e38])
@pytest.mark.parametrize(("dtype", "middle"), [("int8", 0), ("uint8", 128)])
def test_eight_bits_hold_rows_of_any_size(dtype: Literal["int8", "uint8"], middle: int, number: float) -> None:
    """A text without a token of its own may have a vector of zeros."""
    found = quantized(np.array([[number, -number, 0]], np.float32), dtype).astype(int) - middle
    most = 127 if number >= 1e-30 else found[0, 0]
    assert found.tolist() == [[most, -most, 0]]
    assert 0 <= most <= 127


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [1e-44, 1e-30, 1e-15, 1e15, 1e30, 3e38])
def test_rows_of_any_size_get_length_1_and_change_no_other_row(number: float) -> None:
    """Their squares do not fit float32, and their cosines came out as 0, or over 1."""
    usual = np.array([[3.0, 0.1, -4.0]], np.float32)
    found = l2_normalize(np.concatenate([usual, [[number, -number, 0]], [[0, 0, 0]]]).astype(np.float32))
    np.testing.assert_array_equal(found[:1], l2_normalize(usual))
    np.testing.assert_allclose(found[1:], [[0.5**0.5, -(0.5**0.5), 0], [0, 0, 0]], rtol=1e-6)
    assert l2_normalize(np.empty((0, 3), np.float32)).shape == (0, 3)
