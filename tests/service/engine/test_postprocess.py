"""What is made of an encoder's rows, by plain calls."""

from typing import Literal

import numpy as np
import pytest

from service.engine.postprocess import is_finite, quantized


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
