"""A safetensors file in memory -> NumPy arrays and metadata. https://github.com/huggingface/safetensors#format."""

import json
import math
from typing import Any, NamedTuple

import numpy as np

from visiontower_client.values import Array

_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I8": "i1", "U8": "u1"}


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
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__", {})
    return Tensors({name: _array(data, start, **about) for name, about in header.items()}, metadata)


def _array(data: bytearray, start: int, *, dtype: str, shape: list[int], data_offsets: list[int]) -> Array:
    if dtype not in _DTYPES:
        raise ValueError(f"it has a dtype that is not read: {dtype}")
    little = np.dtype(_DTYPES[dtype])
    count, (first, last) = math.prod(shape), data_offsets
    if last - first != count * little.itemsize or start + last > len(data):
        raise ValueError("a tensor is cut")
    flat: np.ndarray[Any, np.dtype[Any]] = np.frombuffer(data, little, count, start + first)
    if dtype == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.astype(flat.dtype.newbyteorder("="), copy=False).reshape(shape)
