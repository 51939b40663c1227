"""A row as computed -> the arrays as asked for: prefix, norm, dtype."""

import numpy as np

from encoders.contract.errors import NonFiniteOutput
from encoders.contract.values import Encoded, Floats
from service.engine.values import DTYPES, Dtype, Embedding, EmbedRequest
from service.errors import NumbersDoNotFit
from service.scheduling.resident import is_finite


def embedding(row: Encoded, request: EmbedRequest, *, model: str) -> Embedding:
    """One image's arrays as the request wants them. Raises NonFiniteOutput or NumbersDoNotFit."""
    tokens, pooled, prefix_tokens = row.tokens, row.pooled, row.prefix_tokens
    if tokens is not None:
        require_finite(tokens, model=model)
        if not request.prefix:
            tokens = tokens[prefix_tokens:]
        tokens = as_asked(tokens, normalize=request.normalize, dtype=request.dtype)
    if pooled is not None:
        require_finite(pooled, model=model)
        pooled = as_asked(pooled, normalize=request.normalize, dtype=request.dtype)
    return Embedding(row.grid, prefix_tokens if request.prefix else 0, tokens, pooled)


def as_asked(array: Floats, *, normalize: bool, dtype: Dtype) -> Floats:
    """The array [..., width], C-contiguous; its rows of length 1 if asked for. Raises NumbersDoNotFit."""
    if normalize:
        array = l2_normalize(array)
    wanted = DTYPES[dtype]
    if array.dtype == wanted:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):
        cast: Floats = np.ascontiguousarray(array.astype(wanted))
    if dtype == "float16" and not is_finite(cast):  # only float16 has less range than its source
        raise NumbersDoNotFit(dtype)
    return cast


def l2_normalize(vectors: Floats) -> Floats:
    """Rows of length 1, float32; a zero row stays zero."""
    wide: Floats = vectors.astype(np.float32, copy=False)
    norms: Floats = np.linalg.norm(wide, axis=-1, keepdims=True)
    unit: Floats = wide / np.maximum(norms, np.finfo(np.float32).tiny)
    return unit


def require_finite(array: Floats, *, model: str) -> None:
    """Raises NonFiniteOutput."""
    if not is_finite(array):
        raise NonFiniteOutput(encoder=model)
