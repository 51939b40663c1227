"""Whether computed numbers are numbers."""

import numpy as np

from encoders.contract.errors import NonFiniteOutput
from encoders.contract.values import Floats


def is_finite(values: Floats) -> bool:
    """Whether no value is NaN or infinite. One pass that allocates nothing: NaN and infinity survive a sum."""
    with np.errstate(all="ignore"):
        if np.isfinite(np.add.reduce(values, axis=None, dtype=np.float32)):
            return True
        return bool(np.isfinite(values).all())  # finite values can also overflow the sum


def require_finite(array: Floats, *, model: str) -> None:
    """Raises NonFiniteOutput."""
    if not is_finite(array):
        raise NonFiniteOutput(encoder=model)
