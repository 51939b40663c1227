"""A safetensors file in memory -> NumPy arrays and metadata. https://github.com/huggingface/safetensors#format."""

import json
import math
from typing import Any, NamedTuple

import numpy as np

from visiontower_client.values import Array

_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I8": "i1", "U8": "u1"}


_AXES = 4
"""Of a tensor, at most."""
_SIDE = 2**40
"""Of an axis, at most."""
_SHOWN = 60
"""Characters of what is wrong that an error shows."""


class Tensors(NamedTuple):
    """arrays: by name. metadata: texts by name."""

    arrays: dict[str, Array]
    metadata: dict[str, str]


def read(content: bytes) -> Tensors:
    """The arrays are writable and in the machine's order of bytes; bfloat16 becomes float32, which holds it exactly.

    Raises ValueError for what is no safetensors file, or is cut.
    """
    data = bytearray(content)  # a copy of all, once: arrays over bytes could not be written to
    start = 8 + int.from_bytes(data[:8], "little")
    if len(data) < 8 or start > len(data):
        raise ValueError("it ends before its header")
    try:
        header = json.loads(data[8:start])
    except RecursionError as error:
        raise ValueError("its header is nested") from error
    tensors = memoryview(data)[start:]
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata are no texts by name")
    return Tensors({name: _array(tensors, about) for name, about in header.items()}, metadata)


def _array(tensors: memoryview, about: Any) -> Array:
    """Raises ValueError."""
    match about:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(first), int(last)]}:
            pass
        case _:
            raise ValueError("a tensor has no dtype, shape and data_offsets")
    if dtype not in _DTYPES:
        raise ValueError(f"it has a dtype that is not read: {dtype[:_SHOWN]}")
    if len(shape) > _AXES or not all(type(side) is int and 0 <= side <= _SIDE for side in shape):
        raise ValueError(f"a tensor has a shape that cannot be: {str(shape[:_AXES])[:_SHOWN]}")
    little = np.dtype(_DTYPES[dtype])
    if not 0 <= first <= last <= len(tensors) or last - first != math.prod(shape) * little.itemsize:
        raise ValueError("a tensor is cut")
    flat: np.ndarray[Any, np.dtype[Any]] = np.frombuffer(tensors[first:last], little)
    if dtype == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.astype(flat.dtype.newbyteorder("="), copy=False).reshape(shape)
