"""What is made of an encoder's rows, by plain calls."""

import numpy as np
import pytest

from service.engine.postprocess import is_finite


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_finite_is_told_from_nan_and_infinity(dtype: str) -> None:
    values = np.full((4, 5), 60000, dtype=dtype)
    assert is_finite(values)
    for bad in (np.nan, np.inf, -np.inf):
        values[2, 2] = bad
        assert not is_finite(values)


def test_large_finite_values_are_finite() -> None:
    assert is_finite(np.full(10, 3e38, dtype=np.float32))
