"""Arrays in answers: their bytes, and how JSON holds them."""

import base64

import numpy as np

from service.engine.engine import INLINE_VALUES
from service.engine.values import Numbers
from service.http.json import Text

_BASE64_BYTES = 3 * 65_536
"""Encoded in one call; a multiple of three leaves no padding between two."""


def raw(array: Numbers) -> memoryview:
    """The bytes of a contiguous array, not copied; by way of uint8, as bfloat16 has no buffer of its own."""
    return array.reshape(-1).view(np.uint8).data


def json_numbers(array: Numbers) -> Numbers:
    """The array in a dtype that JSON can be written from."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def base64_text(array: Numbers) -> str | Text:
    """Base64 of the row-major, little-endian bytes of a contiguous array; of many numbers in pieces."""
    return base64.b64encode(raw(array)).decode("ascii") if array.size <= INLINE_VALUES else base64_pieces(raw(array))


def base64_pieces(content: memoryview) -> Text:
    """Bytes in base64. They are encoded as the text is written."""
    starts = range(0, len(content), _BASE64_BYTES)
    return Text(base64.b64encode(content[start : start + _BASE64_BYTES]) for start in starts)
