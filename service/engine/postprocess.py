"""Rows as computed -> the arrays as asked for: prefix, norm, dtype."""

import numpy as np

from encoders.contract.errors import NonFiniteOutput, VisiontowerError
from encoders.contract.values import Encoded, Floats
from service.engine.images import EncodedImages
from service.engine.values import DTYPES, Embedding, EmbedRequest, EmbedResult, Numbers, VectorDtype
from service.errors import NumbersDoNotFit

INLINE_VALUES = 16_384
"""Up to so many numbers the event loop works on itself: cheaper than the way to another thread and back."""
_LEAST_NORM, _GREATEST_NORM = np.float32(1e-15), np.float32(1e15)
"""Between them float32 holds the squares of a row's numbers."""


def embeddings(images: EncodedImages, request: EmbedRequest, *, model: str) -> EmbedResult:
    """The images' arrays as the request wants them. An image whose arrays cannot be given is an error at its place."""
    items: list[Embedding | VisiontowerError] = []
    tokens = 0
    for outcome in images.outcomes:
        if isinstance(outcome, VisiontowerError):
            items.append(outcome)
            continue
        try:
            item = embedding(outcome, request, model=model)
        except VisiontowerError as error:
            items.append(error)
        else:
            items.append(item)
            tokens += item.prefix_tokens + item.grid.rows * item.grid.cols
    return EmbedResult(model, items, images.timing, tokens, images.values, cached=images.cached)


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


def as_asked(array: Floats, *, normalize: bool, dtype: VectorDtype) -> Numbers:
    """The array [..., width], C-contiguous; its rows of length 1 if asked for. Raises NumbersDoNotFit."""
    if normalize:
        array = l2_normalize(array)
    wanted = DTYPES.get(dtype)
    if wanted is None:
        return quantized(array, dtype)
    if array.dtype == wanted:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):
        cast: Floats = np.ascontiguousarray(array.astype(wanted))
    if dtype == "float16" and not is_finite(cast):  # only float16 has less range than its source
        raise NumbersDoNotFit(dtype)
    return cast


def quantized(vectors: Floats, dtype: VectorDtype) -> Numbers:
    """Vectors [..., width] in fewer bits.

    int8: each vector times 127 over its greatest magnitude, so cosines keep their order, dot products do not; a zero
    vector stays zero. uint8: that plus 128. binary: the bits `value > 0`, eight to a uint8 [..., width / 8 rounded up],
    the first the highest.
    """
    if dtype == "binary":
        return np.packbits(vectors > 0, axis=-1)
    wide = vectors.astype(np.float32, copy=False)
    greatest = np.abs(wide).max(axis=-1, keepdims=True)
    scaled: Floats = np.rint(127 * (wide / np.maximum(greatest, np.finfo(np.float32).tiny)))  # a zero row stays zero
    return scaled.astype(np.int8) if dtype == "int8" else (scaled + 128).astype(np.uint8)


def l2_normalize(vectors: Floats) -> Floats:
    """Rows of length 1, float32; a zero row stays zero."""
    wide: Floats = vectors.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        norms: Floats = np.linalg.norm(wide, axis=-1, keepdims=True)
    if norms.min(initial=1) < _LEAST_NORM or norms.max(initial=1) > _GREATEST_NORM:
        greatest = np.abs(wide).max(axis=-1, keepdims=True)
        is_usual = ((norms >= _LEAST_NORM) & (norms <= _GREATEST_NORM)) | (greatest == 0)
        wide = wide / np.where(is_usual, 1, greatest)
        norms = np.linalg.norm(wide, axis=-1, keepdims=True)
    unit: Floats = wide / np.maximum(norms, _LEAST_NORM)
    return unit


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
