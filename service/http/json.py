"""Values -> JSON bytes, and how JSON holds arrays."""

import base64
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import orjson

from encoders.contract.values import Floats
from service.engine.postprocess import INLINE_VALUES
from service.engine.values import DTYPES, Numbers

NUMBER_BYTES = 24
"""Host memory for each number of an answer in JSON: as computed, as asked for, and as written."""
_NUMBERS = 65_536
"""Written in one call, which nothing else can run beside; it takes some milliseconds."""

_BASE64_BYTES = 3 * 65_536
"""Encoded in one call; a multiple of three leaves no padding between two."""

to_json: Callable[[object], bytes] = partial(orjson.dumps, option=orjson.OPT_SERIALIZE_NUMPY)
"""JSON; float arrays as nested lists, each number in the fewest digits that give it back."""


def json_pieces(value: object) -> Iterator[bytes]:
    """The JSON of `to_json` in pieces, for large arrays in dicts and lists: other threads run between two pieces."""
    if isinstance(value, dict):
        opening = b"{"
        for name, each in value.items():
            yield opening + to_json(name) + b":"
            yield from json_pieces(each)
            opening = b","
        yield b"}" if value else b"{}"
    elif isinstance(value, list) and value:
        opening = b"["
        for each in value:
            yield opening
            yield from json_pieces(each)
            opening = b","
        yield b"]"
    elif isinstance(value, Text):
        yield b'"'
        yield from value.pieces
        yield b'"'
    elif isinstance(value, np.ndarray) and value.size > _NUMBERS:
        yield from _array_pieces(value)
    else:
        yield to_json(value)


def written(answer: Mapping[str, Any], *, numbers: int) -> bytes | list[bytes]:
    """The JSON of an answer with so many numbers, in pieces if they are many."""
    return to_json(answer) if numbers <= INLINE_VALUES else list(json_pieces(answer))


class Text:
    """A text in pieces, of characters that JSON does not escape. Only for `json_pieces`."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces = pieces


def _array_pieces(array: Floats) -> Iterator[bytes]:
    """Of a contiguous array with at least one axis."""
    step = _NUMBERS // (array.size // len(array))
    opening = b"["
    for start in range(0, len(array), step or 1):
        yield opening
        if step:
            yield to_json(array[start : start + step])[1:-1]
        else:
            yield from _array_pieces(array[start])
        opening = b","
    yield b"]"


def raw(array: Numbers) -> memoryview:
    """The bytes of a contiguous array, not copied; by way of uint8, as bfloat16 has no buffer of its own."""
    return array.reshape(-1).view(np.uint8).data


def json_numbers(array: Numbers) -> Numbers:
    """The array in a dtype that JSON can be written from."""
    return array.astype(np.float32) if array.dtype == DTYPES["bfloat16"] else array


def base64_text(array: Numbers) -> str | Text:
    """Base64 of the row-major, little-endian bytes of a contiguous array; of many numbers in pieces."""
    return base64.b64encode(raw(array)).decode("ascii") if array.size <= INLINE_VALUES else base64_pieces(raw(array))


def base64_pieces(content: memoryview) -> Text:
    """Bytes in base64. They are encoded as the text is written."""
    starts = range(0, len(content), _BASE64_BYTES)
    return Text(base64.b64encode(content[start : start + _BASE64_BYTES]) for start in starts)
