"""How near is equal: one tolerance for all parity tests, with its reason."""

from typing import Any

import numpy as np

from encoders.contract.values import Floats


def close(found: Any, expected: Any) -> None:
    """Asserts equal up to float32 rounding.

    Both sides run the same operations on the same weights; they may differ in how a batch is cut and where a kernel is
    fused, which moves last digits. Through tens of layers that stays under 1e-4 of the largest value; a wrong weight,
    norm or token order is far above it.
    """
    a, b = (np.asarray(value, dtype=np.float32) for value in (found, expected))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * float(np.abs(b).max()))


def cosines(a: Floats, b: Floats) -> Floats:
    """Of each vector [..., width]: what is held where dtypes or runtimes differ."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    found: Floats = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return found
