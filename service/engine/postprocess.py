"""A row as computed -> the tensors as asked for: prefix, norm, dtype. Knows NumPy; no wire format."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from encoders.contract.errors import NonFiniteOutput
from encoders.contract.values import Encoded, Floats, Grid
from service.errors import NumbersDoNotFit
from service.http.protocols.native.options import Dtype, EmbedOptions
from service.scheduling.batch import is_finite

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class Tensors:
    """What is answered for one image, C-contiguous, in the dtype asked for.

    tokens: [prefix_tokens + rows * cols, width]; pooled: [width]; None if not asked for.
    """

    grid: Grid
    prefix_tokens: int
    tokens: Floats | None
    pooled: Floats | None

    @property
    def named(self) -> dict[str, Floats]:
        """Those that were asked for."""
        both = {"tokens": self.tokens, "pooled": self.pooled}
        return {name: array for name, array in both.items() if array is not None}

    @property
    def token_count(self) -> int:
        """Tokens this image is answered with (or was pooled from)."""
        return self.prefix_tokens + self.grid.rows * self.grid.cols


def finish(row: Encoded, options: EmbedOptions, *, model: str) -> Tensors:
    """The row's tensors as the options want them. Raises NonFiniteOutput or NumbersDoNotFit."""
    for array in (row.tokens, row.pooled):
        if array is not None and not is_finite(array):
            raise NonFiniteOutput(encoder=model)
    tokens, prefix_tokens = row.tokens, row.prefix_tokens
    if not options.prefix:
        tokens, prefix_tokens = None if tokens is None else tokens[prefix_tokens:], 0
    return Tensors(row.grid, prefix_tokens, _as_asked(tokens, options), _as_asked(row.pooled, options))


def l2_normalize(vectors: Floats) -> Floats:
    """Rows of length 1, float32; a zero row stays zero."""
    wide: Floats = vectors.astype(np.float32, copy=False)
    norms: Floats = np.linalg.norm(wide, axis=-1, keepdims=True)
    unit: Floats = wide / np.maximum(norms, np.finfo(np.float32).tiny)
    return unit


def _as_asked(array: Floats | None, options: EmbedOptions) -> Floats | None:
    if array is None:
        return None
    if options.normalize:
        array = l2_normalize(array)
    return _cast(array, options.dtype)


def _cast(array: Floats, dtype: Dtype) -> Floats:
    if array.dtype == DTYPES[dtype]:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):
        cast: Floats = np.ascontiguousarray(array.astype(DTYPES[dtype]))
    if dtype == "float16" and not is_finite(cast):  # only float16 has less range than what it came from
        raise NumbersDoNotFit(dtype)
    return cast
